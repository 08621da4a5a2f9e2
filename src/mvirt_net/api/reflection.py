"""grpc.reflection: tells clients like grpcurl what can be called, in both of its versions."""

from __future__ import annotations

from collections.abc import Collection
from functools import partial
from typing import Any

from google.protobuf.descriptor_pb2 import FileDescriptorProto

from .descriptors import Schema
from .grpc import Method, Methods, Receive, Send, Status

VERSIONS = ("v1", "v1alpha")


def service_name(version: str) -> str:
    """The full name of the service in one of `VERSIONS`."""
    return f"grpc.reflection.{version}.ServerReflection"


class Reflection:
    """The service, in both versions.

    Args:
        schema: what it tells about.
        services: full names of all that are served.
    """

    def __init__(self, schema: Schema, services: Collection[str]) -> None:
        self._schema = schema
        self._services = sorted(services)

    def methods(self) -> Methods:
        return {
            f"/{service_name(version)}/ServerReflectionInfo": Method(
                self._message(version, "ServerReflectionRequest"),
                stream=partial(self._answer_all, version),
            )
            for version in VERSIONS
        }

    def _message(self, version: str, name: str) -> Any:
        return self._schema.message(f"grpc.reflection.{version}.{name}")

    async def _answer_all(self, version: str, receive: Receive, send: Send) -> None:
        response_type = self._message(version, "ServerReflectionResponse")
        while (request := await receive()) is not None:
            response = response_type(valid_host=request.host, original_request=request)
            self._answer(request, response)
            await send(response)

    def _answer(self, request: Any, response: Any) -> None:
        kind = request.WhichOneof("message_request")
        try:
            if kind == "list_services":
                for name in self._services:
                    response.list_services_response.service.add(name=name)
            elif kind == "file_by_filename":
                _add_file(response, self._schema.files[request.file_by_filename])
            elif kind == "file_containing_symbol":
                _add_file(response, self._schema.file_of(request.file_containing_symbol))
            elif kind == "all_extension_numbers_of_type":
                # proto3 has no extensions, so of a type that exists there are none.
                base = request.all_extension_numbers_of_type
                self._schema.message(base)
                response.all_extension_numbers_response.base_type_name = base
            else:
                raise KeyError(kind)
        except KeyError:
            response.error_response.error_code = Status.NOT_FOUND
            response.error_response.error_message = "there is nothing of that name"


def _add_file(response: Any, proto: FileDescriptorProto) -> None:
    """No file of ours imports another, so one is all that is needed."""
    data = proto.SerializeToString()
    response.file_descriptor_response.file_descriptor_proto.append(data)
