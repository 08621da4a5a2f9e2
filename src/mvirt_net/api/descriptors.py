"""The messages and services of ``proto/``, from `DESCRIPTORS`, what protoc makes of them.

Descriptors rather than generated Python: that refuses to run with a protobuf older than its
compiler, and shares one pool with everybody in the process, in which two packages that both bring
the health service collide. Reflection needs the descriptors anyway.
"""

from __future__ import annotations

from importlib.resources import files

from google.protobuf.descriptor import ServiceDescriptor
from google.protobuf.descriptor_pb2 import FileDescriptorProto, FileDescriptorSet
from google.protobuf.descriptor_pool import DescriptorPool
from google.protobuf.message import Message
from google.protobuf.message_factory import GetMessageClass

DESCRIPTORS = "descriptors.binpb"
"""A google.protobuf.FileDescriptorSet; `make protos` makes it."""


def load_files() -> list[FileDescriptorProto]:
    """Read `DESCRIPTORS`. Raises OSError."""
    data = files(__package__).joinpath("proto", DESCRIPTORS).read_bytes()
    return list(FileDescriptorSet.FromString(data).file)


class Schema:
    """Messages and services by their full names."""

    def __init__(self, protos: list[FileDescriptorProto]) -> None:
        self.files = {proto.name: proto for proto in protos}
        self._pool = DescriptorPool()
        for proto in protos:
            self._pool.Add(proto)

    def message(self, name: str) -> type[Message]:
        """The class of a message. Raises KeyError."""
        return GetMessageClass(self._pool.FindMessageTypeByName(name))

    def service(self, name: str) -> ServiceDescriptor:
        """What a service consists of. Raises KeyError."""
        return self._pool.FindServiceByName(name)

    def file_of(self, symbol: str) -> FileDescriptorProto:
        """The file in which a symbol is defined. Raises KeyError."""
        return self.files[self._pool.FindFileContainingSymbol(symbol).name]
