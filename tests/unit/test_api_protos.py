"""The messages: those of upstream, compiled from the files that are there."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from google.protobuf.descriptor_pb2 import (
    DescriptorProto,
    EnumDescriptorProto,
    FieldDescriptorProto,
    FileDescriptorProto,
    FileDescriptorSet,
    ServiceDescriptorProto,
)

import mvirt_net.api
from mvirt_net.api.descriptors import DESCRIPTORS, load_files

PROTO = Path(mvirt_net.api.__file__).parent / "proto"
UPSTREAM = Path(__file__).with_name("upstream_net_service.txt")
"""What upstream's clients rely on: methods, messages, fields and enums, a line each."""


def test_the_descriptors_are_those_of_the_files(tmp_path: Path) -> None:
    names = sorted(str(path.relative_to(PROTO)) for path in PROTO.rglob("*.proto"))
    compiled = tmp_path / DESCRIPTORS
    command = ["-m", "grpc_tools.protoc", "-I", ".", f"--descriptor_set_out={compiled}", *names]
    subprocess.run([sys.executable, *command], cwd=PROTO, check=True)
    fresh = FileDescriptorSet.FromString(compiled.read_bytes())
    assert list(fresh.file) == load_files(), "run `make protos`"


def test_the_service_is_upstreams() -> None:
    [ours] = [file for file in load_files() if file.package == "mvirt.net"]
    assert sorted(_facts(ours)) == UPSTREAM.read_text().splitlines()


def _facts(file: FileDescriptorProto) -> Iterator[str]:
    for service in file.service:
        yield from _methods(service)
    for enum in file.enum_type:
        yield from _values(enum)
    for message in file.message_type:
        yield from _fields(message)


def _methods(service: ServiceDescriptorProto) -> Iterator[str]:
    for method in service.method:
        kind = " stream" if method.server_streaming else ""
        assert not method.client_streaming
        yield f"rpc {service.name}.{method.name} {method.input_type} {method.output_type}{kind}"


def _values(enum: EnumDescriptorProto) -> Iterator[str]:
    for value in enum.value:
        yield f"enum {enum.name} {value.name} {value.number}"


def _fields(message: DescriptorProto) -> Iterator[str]:
    yield f"message {message.name}"
    for field in message.field:
        words = [f"field {message.name}.{field.name}", str(field.number)]
        words += [FieldDescriptorProto.Type.Name(field.type).removeprefix("TYPE_").lower()]
        words += [field.type_name] if field.type_name else []
        if field.label == FieldDescriptorProto.LABEL_REPEATED:
            words.append("repeated")
        elif field.proto3_optional:
            words.append("optional")
        elif field.HasField("oneof_index"):
            words.append("oneof")
        yield " ".join(words)
