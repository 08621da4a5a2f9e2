"""From counters to rates."""

from __future__ import annotations

from typing import Any

import pytest

from mvirt_net.ctl.rates import HELP, Order, Page, Rates, Sample, View, human
from mvirt_net.ctl.tables import GAP


def counters(tx: int = 0, rx: int = 0, **drops: int) -> dict[str, Any]:
    """Of frames of 100 bytes."""
    return {
        "tx_frames": tx,
        "tx_bytes": tx * 100,
        "rx_frames": rx,
        "rx_bytes": rx * 100,
        "drops": drops,
    }


def sample(at: float, **stats: dict[str, Any]) -> Sample:
    nics = {name: {"network": "blue", "state": "active"} for name in stats}
    return Sample(at, nics, stats)


def view(*transmitted: int) -> View:
    """NICs vm0, vm1, … that sent so many frames in a second."""
    names = [f"vm{number}" for number in range(len(transmitted))]
    before = {name: counters() for name in names}
    after = {name: counters(tx=tx) for name, tx in zip(names, transmitted, strict=True)}
    return View.between(sample(0, **before), sample(1, **after))


class TestRates:
    def test_per_second(self) -> None:
        before = counters(tx=100, rx=10, no_route=5)
        after = counters(tx=300, rx=20, no_route=5, ethertype=6)
        assert Rates.between(before, after, 2.0) == Rates(
            tx_frames=100, tx_bits=80_000, rx_frames=5, rx_bits=4_000, drops=3
        )

    def test_a_new_nic_has_none_yet(self) -> None:
        assert Rates.between(None, counters(tx=7), 1.0) == Rates()

    def test_a_nic_that_was_made_anew_has_none_yet(self) -> None:
        assert Rates.between(counters(tx=7, rx=1), counters(tx=1, rx=9), 1.0) == Rates()

    def test_together_counts_what_is_known(self) -> None:
        together = Rates.together([Rates(1, 2, 3, 4, 5), Rates(), Rates(1, 1, 1, 1, 1)])
        assert together == Rates(2, 3, 4, 5, 6)

    def test_together_of_nothing(self) -> None:
        assert Rates.together([]) == Rates()

    @pytest.mark.parametrize(
        ("rate", "text"),
        [
            (None, "-"),
            (0, "0"),
            (0.4, "0"),
            (12.3, "12"),
            (999.4, "999"),
            (999.6, "1.00k"),
            (1_234, "1.23k"),
            (9_999, "10.0k"),
            (12_345, "12.3k"),
            (99_960, "100k"),
            (999_600, "1.00M"),
            (3.4e9, "3.40G"),
            (5e19, "50000P"),
        ],
    )
    def test_three_digits_and_a_unit(self, rate: float | None, text: str) -> None:
        assert human(rate) == text


class TestOrder:
    @pytest.mark.parametrize(
        ("order", "names"),
        [
            (Order.BITS, ["both", "sends", "takes", "drops"]),
            (Order.FRAMES, ["both", "sends", "takes", "drops"]),
            (Order.TX, ["sends", "both", "drops", "takes"]),
            (Order.RX, ["takes", "both", "drops", "sends"]),
            (Order.DROPS, ["drops", "both", "sends", "takes"]),
            (Order.NAME, ["both", "drops", "sends", "takes"]),
        ],
    )
    def test_the_most_comes_first(self, order: Order, names: list[str]) -> None:
        after = sample(
            1,
            takes=counters(rx=25),
            drops=counters(no_route=1),
            sends=counters(tx=30),
            both=counters(tx=20, rx=20),
        )
        before = sample(0, **{name: counters() for name in after.stats})
        rows = order.sorted(View.between(before, after).rows)
        assert [row.name for row in rows] == names

    def test_every_key_is_another_one(self) -> None:
        keys = {order.key for order in Order}
        assert len(keys) == len(Order)
        assert not keys & set("q ")


class TestPage:
    def test_fills_the_screen(self) -> None:
        lines = Page.of(view(5, 6), Order.BITS, "title", (100, 10)).lines
        assert len(lines) == 10
        assert lines[0] == "title"
        assert lines[1] == (
            "2 NICs, 2 active  tx 11 frames/s 8.80k bit/s  rx 0 frames/s 0 bit/s  drops 0/s"
        )
        assert [line.split()[:1] for line in lines[3:6]] == [["NIC"], ["vm1"], ["vm0"]]
        assert lines[-1] == GAP.join(HELP)

    @pytest.mark.parametrize(
        ("first", "top", "said"),
        [
            (0, 19, "(16 below; arrows scroll)"),
            (-3, 19, "(16 below; arrows scroll)"),
            (2, 17, "(2 above, 14 below; arrows scroll)"),
            (99, 3, "(16 above; arrows scroll)"),
        ],
    )
    def test_says_how_many_have_no_room(self, first: int, top: int, said: str) -> None:
        page = Page.of(view(*range(20)), Order.BITS, "title", (100, 10), first=first)
        assert len(page.lines) == 10
        names = [line.split()[0] for line in page.lines[4:8]]
        assert names == [f"vm{number}" for number in range(top, top - 4, -1)]
        assert page.lines[8] == said
        assert (page.first, page.room) == (19 - top, 4)

    @pytest.mark.parametrize("height", range(1, 12))
    @pytest.mark.parametrize("width", [1, 7, 40])
    def test_stays_within_a_small_terminal(self, width: int, height: int) -> None:
        trouble = "it does not answer, for reasons that are long to tell"
        for said in ("", trouble):
            page = Page.of(view(1, 2, 3), Order.BITS, "title", (width, height), trouble=said)
            assert len(page.lines) <= height
            assert all(len(line) <= width for line in page.lines)

    @pytest.mark.parametrize(
        ("width", "order", "titles"),
        [
            (75, Order.BITS, "NIC NETWORK STATE TX-FRAMES/S TX-BIT/S RX-FRAMES/S RX-BIT/S DROPS/S"),
            (74, Order.BITS, "NIC STATE TX-FRAMES/S TX-BIT/S RX-FRAMES/S RX-BIT/S DROPS/S"),
            (60, Order.BITS, "NIC TX-FRAMES/S TX-BIT/S RX-FRAMES/S RX-BIT/S DROPS/S"),
            (40, Order.BITS, "NIC TX-BIT/S RX-BIT/S DROPS/S"),
            (40, Order.FRAMES, "NIC TX-FRAMES/S RX-FRAMES/S DROPS/S"),
        ],
    )
    def test_narrow_terminals_have_fewer_columns(
        self, width: int, order: Order, titles: str
    ) -> None:
        lines = Page.of(view(1, 2, 3), order, "title", (width, 24)).lines
        assert titles.split() in [line.split() for line in lines]

    def test_summary_and_keys_are_wrapped(self) -> None:
        lines = Page.of(view(5, 6), Order.BITS, "title", (40, 20)).lines
        assert lines[1:5] == [
            "2 NICs, 2 active",
            "tx 11 frames/s 8.80k bit/s",
            "rx 0 frames/s 0 bit/s  drops 0/s",
            "",
        ]
        assert lines[-2:] == [
            "q quit  space now  sort by:  b bits",
            "f frames  t tx  r rx  d drops  n name",
        ]

    def test_trouble_is_told_in_full(self) -> None:
        trouble = "/run/mvirt-net/control.sock: nobody listens there, the daemon has ended"
        lines = Page.of(view(5, 6), Order.BITS, "title", (40, 20), trouble=trouble).lines
        assert " ".join(lines[1:3]) == trouble

    def test_the_title_moves_no_cursor(self) -> None:
        assert Page.of(view(), Order.BITS, "\x1b[2J", (80, 10)).lines[0] == r"\x1b[2J"
