"""Checks of hostile input, each with the change that takes it away and the tests that must notice.

`tests/mutate.py` applies them one by one. What a row's check is and what its tests are stands in
``docs/reference/hostile-input.md``; a row that has no mutant here says there why not.
"""

from __future__ import annotations

import attrs

_M = "tests/test_hostile_messages.py::"
_R = "tests/test_hostile_rings.py::"
_P = "tests/test_hostile_packets.py::"
_PACKED = "tests/test_packed_rings.py::"
_SESSION = "tests/unit/test_vhost_user_hostile.py::"
_CONVERSATION = "tests/unit/test_vhost_user_session.py::"
_CHANNEL = "tests/unit/test_channel.py"
_MEMORY = "tests/unit/test_ffi_memory.py::"
_CORE = "tests/unit/test_ffi_rings.py::"
_LIMIT = "tests/unit/test_ffi_limit.py::"
_WATCHER = "tests/unit/test_ffi_watcher.py::"
_POLLER = "tests/unit/test_ffi_poller.py::"
_TURNS = "tests/unit/test_ffi_turns.py::"
_BACKEND = "tests/unit/test_backend.py"
_NIC = "tests/unit/test_nic.py"
_REFUSED = _M + "test_refused_with_an_answer"
_BROKEN = _M + "test_broken_conversation"


@attrs.frozen
class Mutant:
    """One check taken away.

    Args:
        rows: of the list of hostile inputs, in lower case, with spaces between.
        file: below the project's folder.
        before: what stands there, exactly once.
        after: what stands there in the mutant.
        tests: arguments of pytest; one of them at least must fail.
    """

    rows: str
    file: str
    before: str
    after: str
    tests: tuple[str, ...]

    @property
    def in_c(self) -> bool:
        """Whether the extension has to be built for it."""
        return self.file.endswith((".c", ".h"))

    def mutate(self, text: str) -> str:
        """The file's text with the change. Raises ValueError unless its place is unique."""
        if text.count(self.before) != 1:
            raise ValueError(f"{self.file} has {text.count(self.before)} times {self.before!r}")
        return text.replace(self.before, self.after)

    def __str__(self) -> str:
        return f"{self.rows}: {self.file}: {' '.join(self.before.split())[:60]}"


def _in(path: str) -> str:
    return f"src/mvirt_net/{path}"


_SESSION_PY = _in("vhost_user/session.py")
_MESSAGES_PY = _in("vhost_user/messages.py")
_CHECKS_PY = _in("vhost_user/checks.py")
_CHANNEL_PY = _in("dataplane/channel.py")
_BACKEND_PY = _in("dataplane/backend.py")
_DEVICE_PY = _in("dataplane/device.py")
_MAPPING_PY = _in("dataplane/mapping.py")
_NIC_PY = _in("nic.py")
_MEMORY_C = _in("ffi/memory.c")
_VRING_C = _in("ffi/vring.c")
_VRING_H = _in("ffi/vring.h")
_PACKED_C = _in("ffi/packed.c")
_EVENT_C = _in("ffi/event.c")
_DEBT_C = _in("ffi/debt.c")
_TX_C = _in("ffi/tx.c")
_LIMIT_C = _in("ffi/limit.c")
_RX_C = _in("ffi/rx.c")
_OFFLOAD_C = _in("ffi/offload.c")
_CLASSIFY_C = _in("ffi/classify.c")
_PACKET_C = _in("ffi/packet.c")
_EXPRESS_C = _in("ffi/express.c")
_PORT_C = _in("ffi/port.c")
_CAPTURE_C = _in("ffi/capture.c")
_WATCHER_C = _in("ffi/watcher.c")
_POLLER_C = _in("ffi/poller.c")
_THREAD_C = _in("ffi/thread.c")

MUTANTS: tuple[Mutant, ...] = (
    # The conversation
    Mutant(
        "m01 m53",
        _DEVICE_PY,
        "        self._memory.close()\n        self._release(self.fault_fd)",
        "        self._release(self.fault_fd)",
        (
            _BACKEND + "::TestEnd::test_m53_all_is_given_back",
            _M + "test_m54_reconnects_while_frames_flow",
        ),
    ),
    Mutant(
        "m53",
        _BACKEND_PY,
        "            watch.end()\n        self._lookout.forget(fd)",
        "            pass\n        self._lookout.forget(fd)",
        ("tests/test_watched_rings.py::TestChanges::test_former_kick_is_not_waited_for",),
    ),
    Mutant(
        "m02",
        _NIC_PY,
        "while (holder := self._line[0]) is not turn:",
        "while False and (holder := self._line[0]) is not turn:",
        (_M + "test_m02_second_frontend_has_to_wait",),
    ),
    Mutant(
        "m03",
        _CHANNEL_PY,
        '                raise ConnectionBroken("the connection ended inside a message")',
        "                return bytes(size)",
        (_CHANNEL,),
    ),
    Mutant(
        "m04",
        _CHANNEL_PY,
        "with trio.fail_after(MESSAGE_TIME_LIMIT):",
        "with trio.fail_after(100 * MESSAGE_TIME_LIMIT):",
        (_M + "test_m04_message_that_never_ends",),
    ),
    Mutant("m05", _MESSAGES_PY, "if size > MAX_PAYLOAD:", "if size > 2 * MAX_PAYLOAD:", (_BROKEN,)),
    Mutant(
        "m06",
        _MESSAGES_PY,
        "if len(data) not in cls.SIZE:",
        "if len(data) < cls.SIZE[0]:",
        (_SESSION + "test_m06_payload_size_off_by_one",),
    ),
    Mutant(
        "m07 m08",
        _MESSAGES_PY,
        "if flags & ~NEED_REPLY != VERSION:",
        "if not flags & 3:",
        (_BROKEN,),
    ),
    Mutant(
        "m09",
        _SESSION_PY,
        "if header.need_reply and (acks_before or self._acks):",
        "if header.need_reply:",
        (_M + "test_m09_need_reply_before_it_was_agreed",),
    ),
    Mutant(
        "m10 m44 m48 m49 m50",
        _SESSION_PY,
        '        raise RequestRefused("not supported")',
        "        return",
        (_REFUSED, _SESSION + "test_m44_set_log_base_without_its_feature"),
    ),
    Mutant(
        "m11",
        _SESSION_PY,
        "if legal_in is LegalIn.UNOWNED and self._owned:",
        "if legal_in is LegalIn.UNOWNED and False:",
        (_SESSION + "test_m11_second_owner",),
    ),
    Mutant(
        "m12 m13",
        _SESSION_PY,
        "    if unoffered:\n",
        "    if False:\n",
        (_REFUSED, _SESSION + "test_m13_protocol_features_that_were_not_offered"),
    ),
    Mutant(
        "m12",
        _SESSION_PY,
        '        elif features != self.features:\n            raise RequestRefused("a vring is running")\n',
        "",
        (_SESSION + "test_m12_other_features_while_a_vring_runs",),
    ),
    Mutant(
        "m14",
        _SESSION_PY,
        "if rule.needs not in self._protocol_features:",
        "if False:",
        (_SESSION + "test_m14_without_its_protocol_feature",),
    ),
    Mutant(
        "m15 m16",
        _SESSION_PY,
        "if len(fds) not in rule.fds:",
        "if len(fds) > 253:",
        (
            _SESSION + "test_m15_descriptors_where_there_must_be_none",
            _M + "test_m15_descriptors_with_any_request",
        ),
    ),
    Mutant(
        "m15 m16 m20 m50",
        _BACKEND_PY,
        "            close_fds(message.fds)",
        "            pass",
        (_REFUSED,),
    ),
    Mutant(
        "m16",
        _CHANNEL_PY,
        "if flags & socket.MSG_CTRUNC:",
        "if False:",
        (_CHANNEL,),
    ),
    Mutant(
        "m17",
        _SESSION_PY,
        "if message.no_fd is bool(fds):",
        "if False:",
        (_SESSION + "test_m17_descriptor_and_the_bit_disagree",),
    ),
    Mutant(
        "m18",
        _CHANNEL_PY,
        "            if late_fds:\n",
        "            if False:\n",
        (_CHANNEL, _M + "test_m18_descriptors_with_the_second_half_of_a_header"),
    ),
    Mutant(
        "m19",
        _CHANNEL_PY,
        "if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):",
        "if True:",
        (_CHANNEL, _M + "test_m19_credentials_are_ignored"),
    ),
    Mutant(
        "m21 m28",
        _DEVICE_PY,
        "if fd is not None and not is_eventfd(fd):",
        "if False:",
        (_M + "test_m21_descriptors_that_are_no_eventfds",),
    ),
    Mutant(
        "m21",
        _EVENT_C,
        "if (!mv_event_never_blocks())",
        "if (mv_event_never_blocks())",
        ("tests/unit/test_ffi_event.py::test_m21_counter_that_fills_up_in_between",),
    ),
    Mutant(
        "m21",
        _EVENT_C,
        "if (poll(&p, 1, 0) != 1 || !(p.revents & POLLOUT))",
        "if (0 && poll(&p, 1, 0) != 1)",
        ("tests/unit/test_ffi_event.py::test_m21_full_counter_without_asynchronous_io",),
    ),
    Mutant(
        "m21",
        _DEBT_C,
        "	if (mv_debt_is_too_high(debt))\n		return -EBUSY;",
        "",
        ("tests/unit/test_ffi_event.py::test_m21_restart_does_not_pay",),
    ),
    Mutant(
        "m21",
        _DEBT_C,
        "	if (due <= now) {",
        "	if (true) {",
        ("tests/unit/test_ffi_event.py::test_m21_call_that_wakes_a_multitude",),
    ),
    Mutant(
        "m21",
        _VRING_C,
        "(void)mv_debt_signal(ring->debt, ring->err_fd);",
        "(void)mv_event_write(ring->err_fd);",
        ("tests/unit/test_ffi_event.py::test_m21_err_that_wakes_a_multitude",),
    ),
    Mutant(
        "m21",
        _NIC_PY,
        "            await self._settle_debt()\n",
        "",
        (_M + "test_m21_call_that_wakes_a_multitude_again_and_again",),
    ),
    Mutant(
        "m57",
        _MAPPING_PY,
        "        with trio.fail_after(MAPPING_TIME_LIMIT):",
        "        with trio.fail_after(100 * MAPPING_TIME_LIMIT):",
        (_M + "test_m57_memory_that_takes_too_long_to_map",),
    ),
    Mutant(
        "m57",
        _MAPPING_PY,
        "    if turn.borrowed_tokens or any(mapping.may_wait for mapping, _ in prepared):",
        "    if any(mapping.may_wait for mapping, _ in prepared):",
        ("tests/unit/test_mapping.py::test_one_thread_however_many_come",),
    ),
    Mutant(
        "m57",
        _MAPPING_PY,
        "            if self._abandoned:\n                self._close()",
        "            pass",
        ("tests/unit/test_mapping.py::test_too_long",),
    ),
    Mutant(
        "m24",
        _SESSION_PY,
        "        if len(fds) != len(message.regions):\n",
        "        if False:\n",
        (_SESSION + "test_m24_region_count",),
    ),
    Mutant(
        "m25",
        _CHECKS_PY,
        "if not region.size:",
        "if False:",
        (_SESSION + "test_m25_region_that_cannot_be",),
    ),
    Mutant(
        "m25",
        _CHECKS_PY,
        "        if start + region.size > _ADDRESS_SPACE:\n",
        "        if False:\n",
        (_SESSION + "test_m25_region_that_cannot_be",),
    ),
    Mutant(
        "m25 m27",
        _CHECKS_PY,
        "if start % PAGE_SIZE or region.size % PAGE_SIZE:",
        "if False:",
        (
            _SESSION + "test_m25_region_that_cannot_be",
            _SESSION + "test_m27_mmap_offset_not_on_a_page",
        ),
    ),
    Mutant(
        "m26 m33",
        _CHECKS_PY,
        '    _refuse_overlaps("guest addresses", ((r.guest_addr, r.size) for r in regions))\n',
        "",
        (_SESSION + "test_m26_overlapping_regions", _SESSION + "test_m33_added_region_overlaps"),
    ),
    Mutant(
        "m26 m33",
        _CHECKS_PY,
        '    _refuse_overlaps("user addresses", ((r.user_addr, r.size) for r in regions))\n',
        "",
        (_SESSION + "test_m26_overlapping_regions", _SESSION + "test_m33_added_region_overlaps"),
    ),
    Mutant(
        "m27",
        _MEMORY_C,
        "(uint64_t)st.st_size < spec->mmap_offset + spec->size ||",
        "0 ||",
        (
            _M + "test_m26_to_m31_memory_that_cannot_be_had",
            _MEMORY + "test_m25_m27_region_that_contradicts_itself_or_its_file",
        ),
    ),
    Mutant(
        "m28",
        _MEMORY_C,
        "return errno == EBADF ? -EBADF : -ENODEV;",
        "return errno == EBADF ? -EBADF : 0;",
        (
            _MEMORY + "test_m28_files_whose_pages_somebody_else_delivers",
            _MEMORY + "test_m28_files_that_are_no_memory",
            _M + "test_m26_to_m31_memory_that_cannot_be_had",
        ),
    ),
    Mutant(
        "m29",
        _in("ffi/sigbus.c"),
        "if (info->si_code <= 0 || !handle((uintptr_t)info->si_addr))",
        "if (1)",
        (_R + "test_m29_file_that_shrinks_costs_its_connection_only",),
    ),
    Mutant(
        "m31",
        _MEMORY_C,
        "	    spec->size % page)",
        "	    0)",
        (_M + "test_m26_to_m31_memory_that_cannot_be_had",),
    ),
    Mutant(
        "m30",
        _MEMORY_C,
        "|| spec->size > MAX_TOTAL - total)",
        "|| (0 && spec->size > MAX_TOTAL - total))",
        (_M + "test_m26_to_m31_memory_that_cannot_be_had",),
    ),
    Mutant(
        "m32 m33 r24",
        _PORT_C,
        "&moved[i].addr) < 0)\n			return false;\n",
        "&moved[i].addr) < 0)\n			return true;\n",
        (
            _R + "test_r24_region_of_the_rings_stays",
            _MEMORY + "test_table_without_a_running_ring_is_refused_and_nothing_changes",
        ),
    ),
    Mutant(
        "m33",
        _SESSION_PY,
        "if len(regions) > MAX_MEM_SLOTS:",
        "if False:",
        (_SESSION + "test_m33_more_regions_than_slots",),
    ),
    Mutant(
        "m34 r25",
        _SESSION_PY,
        '        if index >= VRINGS:\n            raise RequestRefused(f"vring {index}")\n',
        "        index %= VRINGS\n",
        (
            _SESSION + "test_m34_vring_that_does_not_exist",
            _R + "test_r25_there_is_no_control_queue",
        ),
    ),
    Mutant(
        "m34",
        _MESSAGES_PY,
        "if value & ~(cls.INDEX_MASK | cls.NOFD):",
        "if False:",
        (_SESSION + "test_m34_descriptor_for_a_vring_that_does_not_exist",),
    ),
    Mutant(
        "m35",
        _CHECKS_PY,
        "possible = MIN_SPLIT_SIZE <= size <= MAX_VRING_SIZE and not size & (size - 1)",
        "possible = True",
        (_SESSION + "test_m35_vring_size_that_cannot_be",),
    ),
    Mutant(
        "m35",
        _CHECKS_PY,
        "possible = 1 <= size <= MAX_VRING_SIZE",
        "possible = True",
        (_SESSION + "test_m35_packed_vring_size_that_cannot_be",),
    ),
    Mutant(
        "m35 m38",
        _SESSION_PY,
        "if legal_in is LegalIn.VRING_STOPPED and self._vring(message.index).running:",
        "if False:",
        (_SESSION + "test_m35_vring_size_while_running", _SESSION + "test_m38_base_while_running"),
    ),
    Mutant(
        "m36",
        _CHECKS_PY,
        "if start % alignment or start + length > _ADDRESS_SPACE:",
        "if start + length > _ADDRESS_SPACE:",
        (_SESSION + "test_m36_vring_layout_that_cannot_be",),
    ),
    Mutant(
        "m36",
        _CHECKS_PY,
        "if start % alignment or start + length > _ADDRESS_SPACE:",
        "if start % alignment:",
        (_SESSION + "test_m36_vring_layout_that_cannot_be",),
    ),
    Mutant(
        "m36 r21",
        _CHECKS_PY,
        '    _refuse_overlaps("vring parts", ((start, length) for start, length, _ in parts))\n',
        "",
        (_SESSION + "test_m36_vring_layout_that_cannot_be",),
    ),
    Mutant(
        "m36",
        _SESSION_PY,
        "        if message.flags:\n",
        "        if False:\n",
        (_SESSION + "test_m36_flags",),
    ),
    Mutant(
        "m36",
        _SESSION_PY,
        '        if not vring.size:\n            raise RequestRefused(f"vring {index} has no size yet")\n',
        "",
        (_SESSION + "test_m36_addresses_before_the_size",),
    ),
    Mutant(
        "m36 m37",
        _VRING_C,
        "	if (!desc || !avail || !used)\n		return -EFAULT;\n",
        "",
        (_CORE + "test_m36_m37_parts_outside_memory",),
    ),
    Mutant(
        "r21 m36",
        _VRING_C,
        "if (misaligned(addr) || ring_overlaps_itself(size, addr))",
        "if (misaligned(addr) || (0 && ring_overlaps_itself(size, addr)))",
        (_CORE + "test_r21_parts_that_overlap_one_another",),
    ),
    Mutant(
        "m38",
        _CHECKS_PY,
        "possible = base <= _MAX_SPLIT_BASE",
        "possible = True",
        (_SESSION + "test_m38_base_that_cannot_be",),
    ),
    Mutant(
        "m38",
        _CHECKS_PY,
        "max(base & _SLOT, base >> 16 & _SLOT) < size",
        "base & _SLOT < size",
        (_SESSION + "test_m38_packed_base_that_cannot_be",),
    ),
    Mutant(
        "m35 m38",
        _SESSION_PY,
        "        check_vring_size(vring.size, packed=packed)\n",
        "",
        (_CONVERSATION + "TestPacked::test_what_is_none_of_a_split_vring_is_refused_at_its_start",),
    ),
    Mutant(
        "m39",
        _SESSION_PY,
        "if vring.running or not vring.kicked or not self._regions:",
        "if vring.running or not vring.kicked:",
        (_M + "test_m39_kick_and_enable_before_everything",),
    ),
    Mutant(
        "m39",
        _SESSION_PY,
        "        if message.num > 1:\n",
        "        if False:\n",
        (_SESSION + "test_m39_neither_enable_nor_disable",),
    ),
    Mutant(
        "m40",
        _SESSION_PY,
        "            vring.base = self._device.stop_vring(message.index)\n            vring.running = False\n",
        "            vring.base = self._device.stop_vring(message.index)\n",
        (
            _SESSION + "test_m40_get_vring_base_again_and_again",
            _SESSION + "test_m35_vring_size_while_running",
            _M + "test_m40_stopping_what_does_not_run",
            _R + "test_r01_avail_index_jumps",
        ),
    ),
    Mutant(
        "m41",
        _SESSION_PY,
        "if self._features is not None and VirtioFeature.PROTOCOL_FEATURES not in self._features:",
        "if False:",
        (_SESSION + "test_m41_enable_without_protocol_features",),
    ),
    Mutant(
        "m42",
        _DEVICE_PY,
        "        _check_eventfd(fd)\n        self.drop_vring_kick(index)\n",
        "        _check_eventfd(fd)\n",
        (_M + "test_m42_kick_replaced_over_and_over",),
    ),
    Mutant(
        "m43",
        _SESSION_PY,
        "            if vring.running:\n                self._device.stop_vring(index)\n            self._device.drop_vring_kick(index)\n",
        "",
        (_M + "test_m43_resets_while_rings_run",),
    ),
    Mutant(
        "m45",
        _SESSION_PY,
        "if end > CONFIG_SPACE_SIZE:",
        "if False:",
        (_SESSION + "test_m45_config_space_that_is_not_there",),
    ),
    Mutant(
        "m45 m46",
        _MESSAGES_PY,
        "        if size != len(content):\n",
        "        if False:\n",
        (_SESSION + "test_m45_config_space_that_is_not_there",),
    ),
    Mutant(
        "m46",
        _SESSION_PY,
        '        raise RequestRefused("the configuration space is read-only")',
        "        return",
        (_SESSION + "test_m46_the_config_space_is_read_only",),
    ),
    Mutant(
        "m47",
        _SESSION_PY,
        "if not MIN_MTU <= message.value <= MAX_MTU:",
        "if False:",
        (_SESSION + "test_m47_mtu_that_cannot_be",),
    ),
    Mutant(
        "m51 m52",
        _CHANNEL_PY,
        "with trio.fail_after(REPLY_TIME_LIMIT):",
        "with trio.fail_after(100 * REPLY_TIME_LIMIT):",
        (_M + "test_m51_peer_that_stops_reading",),
    ),
    Mutant(
        "m55",
        _in("unix_listener.py"),
        "if _identity_or_raise(self.path) == self._identity:",
        "if _identity_or_raise(self.path):",
        ("tests/unit/test_unix_listener.py::test_m55_file_of_somebody_else_is_not_removed",),
    ),
    Mutant(
        "m55",
        _NIC_PY,
        "if was_in_place and not self._in_place:",
        "if False:",
        (_M + "test_m55_socket_path_taken_by_another_file",),
    ),
    # Rings
    Mutant(
        "r01",
        _VRING_C,
        "	if (n > ring->size) {",
        "	if (0) {",
        (_CORE + "test_r01_available_index_that_jumps",),
    ),
    Mutant(
        "r03",
        _VRING_C,
        "if (index >= table->size || !load_desc(table, index, last))",
        "if (!load_desc(table, index, last))",
        (_CORE + "test_r03_links_without_an_end", _R + "test_r03_links"),
    ),
    Mutant(
        "r03 r15",
        _VRING_C,
        "	for (unsigned int n = 0; n < table->size; n++) {",
        "	for (;;) {",
        (_R + "test_r03_links",),
    ),
    Mutant(
        "r05",
        _VRING_C,
        "if (!features.indirect || (last.flags & DESC_F_NEXT) ||",
        "if ((last.flags & DESC_F_NEXT) ||",
        (_R + "test_r05_indirect_without_negotiation",),
    ),
    Mutant(
        "r05",
        _VRING_C,
        "if (!features.indirect || (last.flags & DESC_F_NEXT) ||",
        "if (!features.indirect ||",
        (_R + "test_r05_indirect_with_next",),
    ),
    Mutant(
        "r06",
        _VRING_H,
        "bytes % DESC_SIZE == 0 &&",
        "1 &&",
        (_R + "test_r06_indirect_table",),
    ),
    Mutant(
        "r06",
        _VRING_H,
        "bytes / DESC_SIZE <= ring_size;",
        "1;",
        (_R + "test_r06_indirect_table",),
    ),
    Mutant(
        "r08 r09",
        _VRING_H,
        "	if (!host || chain->n_segments == MV_MAX_SEGMENTS)\n",
        "	if (!host)\n		return true;\n	if (chain->n_segments == MV_MAX_SEGMENTS)\n",
        (_R + "test_r07_to_r13_tx_buffers",),
    ),
    Mutant(
        "r10",
        _VRING_H,
        "if (for_device != (direction == MV_FROM_DRIVER) ||",
        "if ((0 && for_device) ||",
        (_R + "test_r07_to_r13_tx_buffers",),
    ),
    Mutant(
        "r07 r11 r13",
        _TX_C,
        "if (chain->length < header + MV_ETH_SIZE)",
        "if (chain->length < header)",
        (_R + "test_r07_to_r13_tx_buffers",),
    ),
    Mutant(
        "r08 r13",
        _TX_C,
        "if (chain->length > header + MV_MAX_FRAME)",
        "if (chain->length > header + 4 * MV_MAX_FRAME)",
        (_R + "test_r07_to_r13_tx_buffers",),
    ),
    Mutant(
        "r14",
        _RX_C,
        "if (!chain->faulty && chain->length >= rx->header)",
        "if (!chain->faulty)",
        (_R + "test_r14_rx_chain_smaller_than_the_header",),
    ),
    Mutant(
        "r14",
        _RX_C,
        "if (!rx->mergeable && first.length < rx->header + frame->length)",
        "if (0)",
        (_R + "test_r14_rx_chain_smaller_than_the_frame",),
    ),
    Mutant(
        "r14",
        _RX_C,
        "	if (n >= ring->most)\n		return TOO_SMALL;\n",
        "",
        (_R + "test_r14_ring_of_buffers_too_small_for_a_mergeable_frame",),
    ),
    Mutant(
        "r15",
        _VRING_C,
        "if (chain->n_descs++ == MV_MAX_CHAIN) {",
        "if (chain->n_descs++ == 100 * MV_MAX_CHAIN) {",
        (_R + "test_r15_too_many_descriptors",),
    ),
    Mutant(
        "r17 m28",
        _MEMORY_C,
        "mmap(NULL, region->map_size, PROT_READ | PROT_WRITE,",
        "mmap(NULL, region->map_size, PROT_READ,",
        (_R + "test_r17_memory_that_cannot_be_written",),
    ),
    Mutant(
        "r19",
        _RX_C,
        "if (pair->backlog_length == MV_BACKLOG ||",
        "if (pair->backlog_length == MV_BACKLOG - 1 ||",
        (_R + "test_r19_guest_that_takes_nothing_back",),
    ),
    Mutant(
        "r22",
        _VRING_C,
        "if (base < 0 || (used_fits && base_fits))",
        "if (base < 0)",
        (_R + "test_r22_base_behind_the_used_index",),
    ),
    Mutant(
        "r26",
        _VRING_C,
        "	if (!features.event_idx)\n		return !(load16(ring->avail + RING_FLAGS) & AVAIL_F_NO_INTERRUPT);\n",
        "",
        (_R + "test_r26_event_fields_without_event_idx",),
    ),
    # Packed rings
    Mutant(
        "r03",
        _PACKED_C,
        "	for (unsigned int slots = 1; slots <= most; slots++) {",
        "	for (unsigned int slots = 1;; slots++) {",
        (_PACKED + "test_r03_chain_without_an_end",),
    ),
    Mutant(
        "r05",
        _PACKED_C,
        "return features.indirect && slots == 1 && !(desc.flags & DESC_F_NEXT) &&",
        "return slots == 1 && !(desc.flags & DESC_F_NEXT) &&",
        (_R + "test_r05_indirect_without_negotiation",),
    ),
    Mutant(
        "r05",
        _PACKED_C,
        "return features.indirect && slots == 1 && !(desc.flags & DESC_F_NEXT) &&",
        "return features.indirect && slots == 1 &&",
        (_R + "test_r05_indirect_with_next",),
    ),
    Mutant(
        "r05",
        _PACKED_C,
        "return features.indirect && slots == 1 && !(desc.flags & DESC_F_NEXT) &&",
        "return features.indirect && !(desc.flags & DESC_F_NEXT) &&",
        (_PACKED + "test_r05_direct_descriptors_and_then_a_table",),
    ),
    Mutant(
        "r06",
        _PACKED_C,
        "table_is_sane(desc.len, ring->size) &&",
        "1 &&",
        (_R + "test_r06_indirect_table",),
    ),
    Mutant(
        "r15",
        _PACKED_C,
        "if (chain->n_descs++ >= MV_MAX_CHAIN)",
        "if (chain->n_descs++ >= 100 * MV_MAX_CHAIN)",
        (_R + "test_r15_too_many_descriptors",),
    ),
    Mutant(
        "r22",
        _PACKED_C,
        "	if (slot_of(position) == 0)",
        "	if (0)",
        (_PACKED + "test_ring_that_the_frontend_has_forgotten",),
    ),
    Mutant(
        "r22",
        _PACKED_C,
        "	uint16_t position = used ? used : avail;",
        "	uint16_t position = used ? avail : avail;",
        (_PACKED + "test_r22_used_half_of_the_base_counts",),
    ),
    Mutant(
        "r21 m36",
        _PACKED_C,
        "if (misaligned(addr->desc, addr->avail, addr->used) || ring_overlaps_itself(size, addr))",
        "if (misaligned(addr->desc, addr->avail, addr->used))",
        (_CORE + "test_r21_m36_packed_parts_that_cannot_be",),
    ),
    Mutant(
        "m36 m37",
        _PACKED_C,
        "	if (!desc || !driver || !device)\n		return -EFAULT;\n",
        "",
        (_CORE + "test_m36_m37_packed_parts_outside_memory",),
    ),
    # Kicks that a thread waits for
    Mutant(
        "r20",
        _WATCHER_C,
        ".events = EPOLLIN | EPOLLET, .data",
        ".events = EPOLLIN, .data",
        (_WATCHER + "TestOffered::test_not_for_a_kick_that_nobody_reads",),
    ),
    Mutant(
        "r20",
        _WATCHER_C,
        "	forget_fd(watch);\n	watch->next = next;",
        "	watch->next = next;",
        (_WATCHER + "TestGivenBack::test_once",),
    ),
    Mutant(
        "r20",
        _WATCHER_C,
        "	if (!brought_frames)\n		return false;\n",
        "",
        (_WATCHER + "TestOffered::test_not_for_kicks_without_frames",),
    ),
    Mutant(
        "r20",
        _WATCHER_C,
        "	if (watch->listed)\n		return;\n",
        "",
        (_WATCHER + "TestGivenBack::test_again_before_anybody_has_looked",),
    ),
    Mutant(
        "r20",
        _WATCHER_C,
        "	if (watch->kicks < watch->burst)\n		return false;\n",
        "",
        (_WATCHER + "TestOffered::test_kicked_quickly",),
    ),
    Mutant(
        "r20",
        _WATCHER_C,
        "quick = now - watch->burst_began < watch->quick_ns;",
        "quick = true;",
        (_WATCHER + "TestWatching::test_drains_at_each_kick_and_asks_for_the_next",),
    ),
    Mutant(
        "r20",
        _WATCHER_C,
        "if (mv_drained_leaves(&spare->drained)) {",
        "if (0) {",
        (_WATCHER + "TestGivenBack::test_with_something_for_a_service",),
    ),
    Mutant(
        "r20",
        _WATCHER_C,
        "} else if (next == MV_NEXT_KICK) {",
        "} else {",
        (_WATCHER + "TestGivenBack::test_when_the_ring_is_down",),
    ),
    Mutant(
        "r20",
        _WATCHER_C,
        "} else if (next == MV_NEXT_KICK) {",
        "} else if (next == MV_NEXT_KICK && !watch->quick) {",
        (_WATCHER + "TestOffered::test_is_drained_on_and_not_named_again",),
    ),
    Mutant(
        "r20",
        _WATCHER_C,
        "	watch->quick = true;\n	list(watch);",
        "	watch->quick = true;",
        (_WATCHER + "TestOffered::test_kicked_quickly",),
    ),
    Mutant(
        "r20",
        _WATCHER_C,
        "	if (watch->quick)\n		return;\n",
        "",
        (_WATCHER + "TestOffered::test_is_drained_on_and_not_named_again",),
    ),
    Mutant(
        "r20",
        _WATCHER_C,
        "r = watch->kick_fd >= 0 ? -EBUSY : begin(",
        "r = begin(",
        (_WATCHER + "TestErrors::test_watched_twice",),
    ),
    Mutant(
        "r20",
        _WATCHER_C,
        "	if (watcher->stopping)\n		return -ECANCELED;\n",
        "",
        (_WATCHER + "TestErrors::test_stopped",),
    ),
    Mutant(
        "r20 m42",
        _WATCHER_C,
        "	if (!is_given_back(watch))\n		stop_watching(watch);\n",
        "",
        (_WATCHER + "TestEnd::test_nothing_is_drained_afterwards",),
    ),
    Mutant(
        "r20",
        _WATCHER_C,
        "	take_from_list(watch);\n	mv_control_end(&watcher->control);\n	free(watch->left);",
        "	mv_control_end(&watcher->control);\n	free(watch->left);",
        (_WATCHER + "TestEnd::test_a_closed_ring_is_not_named",),
    ),
    # Kicks that nobody has to wait for
    Mutant(
        "r20",
        _POLLER_C,
        "		mv_patience_busy(&hot->patience, now);\n",
        "",
        (_POLLER + "TestGivingUp::test_not_while_frames_come",),
    ),
    Mutant(
        "r20",
        _POLLER_C,
        "	look_for_kicks(poller, now);\n",
        "	(void)look_for_kicks;\n",
        (_WATCHER + "TestHelp::test_drains_at_each_kick",),
    ),
    Mutant(
        "r20",
        _THREAD_C,
        "return !mv_control_is_wanted(control) && pthread",
        "return pthread",
        (_TURNS + "test_a_poller_leaves_the_watcher_to_who_waits_for_it",),
    ),
    Mutant(
        "r20",
        _WATCHER_C,
        "	mv_control_begin_turn(&watcher->control);\n	stopping = watcher->stopping;\n"
        "	if (!stopping)\n		attend_next(watcher, ",
        "	struct epoll_event event;\n"
        "	bool found = epoll_wait(watcher->epoll_fd, &event, 1, 0) > 0;\n\n"
        "	mv_control_begin_turn(&watcher->control);\n	stopping = watcher->stopping;\n"
        "	(void)attend_next;\n	if (!stopping && found)\n		attend(event.data.ptr, ",
        (_TURNS + "test_a_poller_has_what_the_watcher_was_woken_for",),
    ),
    # Packets
    Mutant(
        "p01 p03",
        _OFFLOAD_C,
        "if (!was_negotiated(hdr, features))",
        "if (0 && !was_negotiated(hdr, features))",
        (_P + "test_p01_p03_not_negotiated",),
    ),
    Mutant(
        "p02",
        _OFFLOAD_C,
        "if (hdr->csum_start != packet->l4 || hdr->csum_offset != csum_offset)",
        "if (0)",
        (_P + "test_p02_p03_p04_header_that_contradicts_the_frame",),
    ),
    Mutant(
        "p03",
        _OFFLOAD_C,
        "!fits(gso, packet) ||",
        "",
        (_P + "test_p02_p03_p04_header_that_contradicts_the_frame",),
    ),
    Mutant(
        "p03",
        _OFFLOAD_C,
        "    payload > (uint32_t)hdr->gso_size * MAX_SEGMENTS)",
        "    0)",
        (_P + "test_p02_p03_p04_header_that_contradicts_the_frame",),
    ),
    Mutant(
        "p04",
        _OFFLOAD_C,
        "if (at == 0 || packet->fragment)",
        "if (at == 0)",
        (_P + "test_p02_p03_p04_header_that_contradicts_the_frame",),
    ),
    Mutant(
        "p05 p06",
        _PACKET_C,
        "	packet->offload = (struct mv_net_hdr){ 0 };\n",
        "	packet->offload = (struct mv_net_hdr){ .hdr_len = 1 };\n",
        (_P + "test_p01_p05_p06_header_of_the_guest_goes_no_further",),
    ),
    Mutant(
        "p06",
        _OFFLOAD_C,
        "packet->offload.hdr_len = (uint16_t)packet->payload;",
        "packet->offload.hdr_len = hdr->hdr_len;",
        (_P + "test_p06_offloads_are_described_anew",),
    ),
    Mutant(
        "p07 p16",
        _CLASSIFY_C,
        "if (!same_mac(packet->head + ETH_SOURCE, port->mac))",
        "if (0)",
        (_P + "test_p07_p08_p12_headers", _P + "test_p16_guest_that_claims_anothers_address"),
    ),
    Mutant(
        "p08",
        _PACKET_C,
        "|| !checksum_is_right(ip, header))",
        "|| (0 && !checksum_is_right(ip, header)))",
        (_P + "test_p07_p08_p12_headers",),
    ),
    Mutant(
        "p08",
        _PACKET_C,
        "header > total || total > packet->length - MV_ETH_SIZE ||",
        "header > total ||",
        (_P + "test_p07_p08_p12_headers",),
    ),
    Mutant(
        "p08",
        _PACKET_C,
        "if ((fragment & IPV4_OFFSET) * FRAGMENT_UNIT + total > MAX_PACKET)",
        "if (0)",
        (_P + "test_p07_p08_p12_headers",),
    ),
    Mutant(
        "p08",
        _PACKET_C,
        "			return -MV_DROP_IP_OPTION;\n		}",
        "			break;\n		}",
        (_P + "test_p07_p08_p12_headers",),
    ),
    Mutant(
        "p08",
        _PACKET_C,
        "if (size < 2 || size > length - i)",
        "if (size < 2)",
        (_P + "test_p07_p08_p12_headers",),
    ),
    Mutant(
        "p08",
        _CLASSIFY_C,
        "return source[0] >= 224 || source[0] == 127;",
        "return source[0] == 1;",
        (_P + "test_p07_p08_p12_headers",),
    ),
    Mutant(
        "p08",
        _CLASSIFY_C,
        "if (target[0] == 0 || target[0] == 127 || target[0] >= 240)",
        "if (0)",
        (_P + "test_p07_p08_p12_headers",),
    ),
    Mutant(
        "p08 p12",
        _CLASSIFY_C,
        "	if (ttl(packet) <= 1)\n",
        "	if (0)\n",
        (_P + "test_p08_p12_sender_hears_of_it",),
    ),
    Mutant(
        "p08 p16",
        _CLASSIFY_C,
        "	if (source_is_spoofed(port, packet))\n		return drop(MV_DROP_SOURCE_ADDRESS);\n	hop =",
        "	hop =",
        (_P + "test_p07_p08_p12_headers", _P + "test_p16_guest_that_claims_anothers_address"),
    ),
    Mutant(
        "p09",
        _in("dataplane/arp.py"),
        "if tuple(kind) != _KIND or not from_mac == sender_mac == self._mac:",
        "if tuple(kind) != _KIND:",
        (_P + "test_p09_arp",),
    ),
    Mutant(
        "p10",
        _in("dataplane/packet.py"),
        "if not UDP_HEADER_SIZE <= udp.ulen <= len(packet.payload):",
        "if False:",
        (_P + "test_p10_p11_not_answered",),
    ),
    Mutant(
        "p10",
        _in("dataplane/packet.py"),
        "if udp.sum != 0 and internet_checksum(pseudo_header + datagram) != 0:",
        "if False:",
        (_P + "test_p10_p11_not_answered",),
    ),
    Mutant(
        "p11",
        _in("dataplane/dhcpv4.py"),
        "if message.op != _BOOTREQUEST or message.giaddr != _UNSPECIFIED:",
        "if message.op != _BOOTREQUEST:",
        (_P + "test_p10_p11_not_answered",),
    ),
    Mutant(
        "p11",
        _in("dataplane/dhcpv4.py"),
        "        if message.chaddr != self._mac:\n            return None\n",
        "",
        (_P + "test_p10_p11_not_answered",),
    ),
    Mutant(
        "p12",
        _PACKET_C,
        "if (payload > packet->length - MV_ETH_SIZE - MV_IPV6_SIZE)",
        "if (0)",
        (_P + "test_p07_p08_p12_headers", "tests/unit/test_ffi_forward.py::test_silently_dropped"),
    ),
    Mutant(
        "p12",
        _PACKET_C,
        "n <= MV_MAX_EXTENSIONS; n++)",
        "n <= 100 * MV_MAX_EXTENSIONS; n++)",
        (_P + "test_p07_p08_p12_headers",),
    ),
    Mutant(
        "p12",
        _PACKET_C,
        "if (packet->protocol == MV_ROUTING && header[2] == 0)",
        "if (0)",
        (_P + "test_p07_p08_p12_headers",),
    ),
    Mutant(
        "p12",
        _CLASSIFY_C,
        "	if (ipv6_is_wrong(source, target))\n",
        "	if (0)\n",
        (_P + "test_p07_p08_p12_headers",),
    ),
    Mutant(
        "p13",
        _in("dataplane/ndp.py"),
        "if packet.hop_limit != HOP_LIMIT or message[1] != 0:",
        "if False:",
        (_P + "test_p13_neighbour_discovery",),
    ),
    Mutant(
        "p14",
        _in("dataplane/dhcpv6_messages.py"),
        "if len(found) > 1 or not 2 < len(found[0]) <= MAX_DUID:",
        "if len(found) > 1:",
        (_P + "test_p14_dhcpv6",),
    ),
    Mutant(
        "p14",
        _in("dataplane/dhcpv6_messages.py"),
        "if len(found) > MAX_IAS:",
        "if False:",
        ("tests/unit/test_dhcpv6.py::test_malformed",),
    ),
    Mutant(
        "p14",
        _in("dataplane/dhcpv6.py"),
        "            if not is_link_local(packet.source):\n",
        "            if False:\n",
        (_P + "test_p14_dhcpv6",),
    ),
    Mutant(
        "p15",
        _CLASSIFY_C,
        "verdict.tell = may_tell(packet);",
        "verdict.tell = true;",
        (_P + "test_p15_no_error_about_it",),
    ),
    Mutant(
        "p15",
        _LIMIT_C,
        "spend(&limits->errors, MV_ERROR_INTERVAL_NS, now)",
        "true",
        (_P + "test_p15_errors_are_limited",),
    ),
    Mutant(
        "p17",
        _LIMIT_C,
        "	if (allowance->saved < price ||",
        "	if (",
        (_LIMIT + "test_p17_burst_is_answered_and_the_rest_is_dropped",),
    ),
    Mutant(
        "p17",
        _LIMIT_C,
        "(allowance->pausing && allowance->saved < allowance->pause)",
        "false",
        (_LIMIT + "test_nothing_is_given_until_the_pause_is_over",),
    ),
    Mutant(
        "p17",
        _LIMIT_C,
        "now > allowance->saved_at ? now - allowance->saved_at : 0",
        "now - allowance->saved_at",
        (_LIMIT + "test_clock_that_goes_back_gives_nothing",),
    ),
    Mutant(
        "p17",
        _LIMIT_C,
        "passed < lacking ? passed : lacking",
        "passed",
        (_LIMIT + "test_no_more_than_a_burst_is_saved_up",),
    ),
    Mutant(
        "p01",
        _EXPRESS_C,
        "slot->length < SHORTEST ||",
        "",
        ("tests/unit/test_ffi_express.py::test_what_lies_behind_a_short_frame_is_not_part_of_it",),
    ),
    Mutant(
        "p05 p06",
        _EXPRESS_C,
        "|| leaves_segmentation(front.virtio)",
        "",
        ("tests/unit/test_ffi_express.py::test_what_is_left_to_the_device",),
    ),
    Mutant(
        "p01",
        _EXPRESS_C,
        "(from->features & MV_F_CSUM) && ",
        "",
        ("tests/unit/test_ffi_express.py::test_unfinished_checksum_that_was_not_negotiated",),
    ),
    Mutant(
        "p06",
        _EXPRESS_C,
        " && (to->features & MV_F_GUEST_CSUM)",
        "",
        ("tests/unit/test_ffi_express.py::TestChecksum::test_receiver_does_not_take_it",),
    ),
    Mutant(
        "p02",
        _EXPRESS_C,
        "(uint16_t)(front->virtio >> 48) != hdr->csum_start ||",
        "",
        ("tests/unit/test_ffi_express.py::test_header_of_an_unfinished_checksum",),
    ),
    Mutant(
        "p02",
        _EXPRESS_C,
        "mv_load16(host + offsetof(struct mv_net_hdr, csum_offset)) != hdr->csum_offset",
        "0",
        ("tests/unit/test_ffi_express.py::test_header_of_an_unfinished_checksum",),
    ),
    Mutant(
        "p04",
        _EXPRESS_C,
        "protocol == MV_PROTO_UDP && ",
        "",
        ("tests/unit/test_ffi_express.py::test_protocol_without_a_checksum_to_leave",),
    ),
    Mutant(
        "p04",
        _EXPRESS_C,
        "protocol == MV_PROTO_TCP && ",
        "",
        ("tests/unit/test_ffi_express.py::test_protocol_without_a_checksum_to_leave",),
    ),
    Mutant(
        "p04",
        _EXPRESS_C,
        " && left >= MV_UDP_SIZE",
        "",
        ("tests/unit/test_ffi_express.py::test_lengths_in_the_transport_header",),
    ),
    Mutant(
        "p04",
        _EXPRESS_C,
        "field(said->loaded, 0) != left",
        "0",
        ("tests/unit/test_ffi_express.py::test_lengths_in_the_transport_header",),
    ),
    Mutant(
        "p04",
        _EXPRESS_C,
        "size < MV_TCP_SIZE || ",
        "",
        ("tests/unit/test_ffi_express.py::test_lengths_in_the_transport_header",),
    ),
    Mutant(
        "p04",
        _EXPRESS_C,
        " || size > left",
        "",
        ("tests/unit/test_ffi_express.py::test_lengths_in_the_transport_header",),
    ),
    Mutant(
        "p04",
        _EXPRESS_C,
        "\tif (partial)\n",
        "\tif (0)\n",
        ("tests/unit/test_ffi_express.py::test_lengths_that_change_after_they_were_checked",),
    ),
    Mutant(
        "p08",
        _EXPRESS_C,
        "total < MV_IPV4_SIZE ||",
        "",
        ("tests/unit/test_ffi_express.py::test_ipv4",),
    ),
    Mutant(
        "p08",
        _EXPRESS_C,
        "total < MV_IPV4_SIZE || total > room",
        "total < MV_IPV4_SIZE",
        ("tests/unit/test_ffi_express.py::test_ipv4",),
    ),
    Mutant(
        "p08",
        _EXPRESS_C,
        "byte(front->ip[0], 0) != VERSION_4_WITHOUT_OPTIONS ||",
        "",
        ("tests/unit/test_ffi_express.py::test_ipv4",),
    ),
    Mutant(
        "p08",
        _EXPRESS_C,
        "byte(front->ip[1], 0) <= 1 ||",
        "",
        ("tests/unit/test_ffi_express.py::test_ipv4",),
    ),
    Mutant(
        "p08",
        _EXPRESS_C,
        "(field(front->ip[0], 6) & ~(unsigned int)DONT_FRAGMENT) ||",
        "",
        ("tests/unit/test_ffi_express.py::test_ipv4",),
    ),
    Mutant(
        "p08",
        _EXPRESS_C,
        "!mv_ipv4_sum_is_right(front->ip[0], front->ip[1], (uint32_t)front->ip[2])",
        "0",
        ("tests/unit/test_ffi_express.py::test_ipv4",),
    ),
    Mutant(
        "p12",
        _EXPRESS_C,
        "byte(front->ip[0], 0) >> 4 != 6 ||",
        "",
        ("tests/unit/test_ffi_express.py::test_ipv6",),
    ),
    Mutant(
        "p12",
        _EXPRESS_C,
        "total > room || byte(front->ip[0], 7) <= 1",
        "byte(front->ip[0], 7) <= 1",
        ("tests/unit/test_ffi_express.py::test_ipv6",),
    ),
    Mutant(
        "p12",
        _EXPRESS_C,
        "byte(front->ip[0], 7) <= 1 ||",
        "",
        ("tests/unit/test_ffi_express.py::test_ipv6",),
    ),
    Mutant(
        "p12",
        _EXPRESS_C,
        "mv_is_extension((uint8_t)byte(front->ip[0], 6))",
        "0",
        ("tests/unit/test_ffi_express.py::test_ipv6",),
    ),
    Mutant(
        "r14",
        _EXPRESS_C,
        " || into->length < IP_AT + length",
        "",
        ("tests/unit/test_ffi_express.py::test_buffers_of_any_size",),
    ),
    Mutant(
        "r27",
        _CAPTURE_C,
        "frame->length < capture->snaplen ? frame->length : capture->snaplen",
        "frame->length",
        (
            "tests/unit/test_ffi_capture.py"
            "::test_r27_chains_that_lie_are_captured_as_far_as_they_go",
        ),
    ),
    Mutant(
        "r27",
        _TX_C,
        "chain->faulty || chain->length < header ? 0",
        "chain->length < header ? 0",
        (
            "tests/unit/test_ffi_capture.py"
            "::test_r27_chains_that_lie_are_captured_as_far_as_they_go",
        ),
    ),
)
