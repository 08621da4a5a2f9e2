"""The official gRPC client against a running daemon, as a program: ``CASE TARGET``.

It is a process of its own because the library keeps threads and descriptors for as long as its
process lives. Its messages are compiled from the .proto files by the official tools. Each case is a
function that fails by an assertion; what the daemon must have from outside comes as text on stdin.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import grpc
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)

import mvirt_net.api

sys.path.append(str(Path(mvirt_net.api.__file__).parent / "proto"))
net, net_grpc = grpc.protos_and_services("net.proto")

SECONDS = 30
CODE = grpc.StatusCode


RED = "11111111-0000-4000-8000-000000000001"
NIC_9 = "11111111-0000-4000-8000-000000000009"


def refused(call: Callable[[], Any], code: Any, words: str) -> None:
    """The call must fail with `code` and a message that has `words`."""
    try:
        call()
    except grpc.RpcError as error:
        assert error.code() is code, error
        assert words in error.details(), error.details()
    else:
        raise AssertionError(f"not refused: {code}")


def blue(stub: Any) -> Any:
    return stub.GetNetwork(net.GetNetworkRequest(name="blue"), timeout=SECONDS)


def every_verb(channel: Any) -> None:
    stub = net_grpc.NetServiceStub(channel)
    assert stub.GetVersion(net.GetVersionRequest(), timeout=SECONDS).version
    red = stub.CreateNetwork(
        net.CreateNetworkRequest(
            name="red",
            id=RED,
            ipv4_enabled=True,
            ipv4_subnet="10.1.0.0/24",
            ipv6_enabled=True,
            ipv6_prefix="fd00:1::/64",
            dns_servers=["9.9.9.9"],
        )
    )
    assert (red.id, red.ipv4_subnet, red.ipv6_prefix) == (RED, "10.1.0.0/24", "fd00:1::/64")
    assert list(red.dns_servers) == ["9.9.9.9"]
    assert red.created_at.endswith("+00:00")
    assert stub.GetNetwork(net.GetNetworkRequest(id=RED)).name == "red"
    assert stub.GetNetwork(net.GetNetworkRequest(name="red")).id == RED
    names = [network.name for network in stub.ListNetworks(net.ListNetworksRequest()).networks]
    assert names == ["blue", "red"]

    nic = stub.CreateNic(
        net.CreateNicRequest(
            network_id="red", name="vm9", id=NIC_9, routed_ipv4_prefixes=["10.9.0.0/24"]
        )
    )
    assert (nic.id, nic.network_id, nic.state) == (NIC_9, RED, net.NIC_STATE_CREATED)
    assert nic.ipv4_address.startswith("10.1.0.")
    assert nic.ipv6_address.startswith("fd00:1::")
    assert Path(nic.socket_path).is_socket()
    assert stub.GetNic(net.GetNicRequest(id=NIC_9)) == stub.GetNic(net.GetNicRequest(name="vm9"))
    updated = stub.UpdateNic(net.UpdateNicRequest(id=NIC_9, routed_ipv6_prefixes=["fd09::/64"]))
    assert not updated.routed_ipv4_prefixes
    assert list(updated.routed_ipv6_prefixes) == ["fd09::/64"]
    assert [n.id for n in stub.ListNics(net.ListNicsRequest(network_id="red")).nics] == [NIC_9]
    assert len(stub.ListNics(net.ListNicsRequest()).nics) == 3

    assert stub.DeleteNic(net.DeleteNicRequest(id=NIC_9)).deleted
    assert not Path(nic.socket_path).exists()
    stub.CreateNic(net.CreateNicRequest(network_id=RED, name="vm9"))
    deleted = stub.DeleteNetwork(net.DeleteNetworkRequest(id=RED, force=True))
    assert (deleted.deleted, deleted.nics_deleted) == (True, 1)
    assert len(stub.ListNics(net.ListNicsRequest()).nics) == 2


def every_error(channel: Any) -> None:
    stub = net_grpc.NetServiceStub(channel)

    def create_network(**fields: Any) -> Callable[[], Any]:
        return lambda: stub.CreateNetwork(net.CreateNetworkRequest(**fields))

    def create_nic(**fields: Any) -> Callable[[], Any]:
        return lambda: stub.CreateNic(net.CreateNicRequest(**fields))

    v4 = {"ipv4_enabled": True, "ipv4_subnet": "10.2.0.0/30"}
    wrong = CODE.INVALID_ARGUMENT
    refused(create_network(), wrong, "name is required")
    refused(create_network(name="x"), wrong, "at least one of ipv4_enabled or ipv6_enabled")
    refused(create_network(name="x", ipv4_enabled=True), wrong, "ipv4_subnet is required")
    refused(create_network(name="x", ipv4_enabled=True, ipv4_subnet="?"), wrong, "ipv4_subnet")
    refused(create_network(name="blue", **v4), CODE.ALREADY_EXISTS, "blue")
    refused(create_network(name="x", id="?", **v4), wrong, "UUID")
    refused(lambda: stub.GetNetwork(net.GetNetworkRequest()), wrong, "id or name is required")
    refused(lambda: stub.GetNetwork(net.GetNetworkRequest(id="?")), CODE.NOT_FOUND, "not found")
    delete_blue = net.DeleteNetworkRequest(id=blue(stub).id, force=True)
    refused(lambda: stub.DeleteNetwork(delete_blue), CODE.FAILED_PRECONDITION, "configuration file")
    green = create_network(name="green", is_public=True, **v4)()
    assert green.is_public
    refused(create_network(name="x", is_public=True, **v4), wrong, "overlap")
    create_nic(network_id="green")()
    create_nic(network_id="green")()
    delete_green = net.DeleteNetworkRequest(id=green.id)
    refused(lambda: stub.DeleteNetwork(delete_green), CODE.FAILED_PRECONDITION, "2 NICs")
    refused(create_nic(network_id="green"), CODE.RESOURCE_EXHAUSTED, "no address")

    refused(create_nic(name="x"), wrong, "network_id is required")
    refused(create_nic(network_id="?"), CODE.NOT_FOUND, "not found")
    refused(create_nic(network_id="blue", mac_address="?"), wrong, "mac_address")
    refused(create_nic(network_id="blue", ipv4_address="10.9.9.9"), wrong, "ipv4_address")
    refused(create_nic(network_id="blue", name="vm1"), CODE.ALREADY_EXISTS, "vm1")
    refused(lambda: stub.GetNic(net.GetNicRequest()), wrong, "id or name is required")
    refused(lambda: stub.GetNic(net.GetNicRequest(name="?")), CODE.NOT_FOUND, "not found")
    refused(lambda: stub.UpdateNic(net.UpdateNicRequest()), wrong, "id is required")
    refused(lambda: stub.DeleteNic(net.DeleteNicRequest(id="?")), CODE.NOT_FOUND, "not found")
    refused(lambda: stub.AttachNic(net.AttachNicRequest(id="?")), CODE.UNIMPLEMENTED, "socket_path")
    groups = [method for method in dir(stub) if "SecurityGroup" in method]
    assert len(groups) == 8
    for method in groups:
        request = getattr(net, f"{method}Request")()
        refused(
            partial(getattr(stub, method), request),
            CODE.UNIMPLEMENTED,
            "no security groups",
        )
    nothing = channel.unary_unary("/mvirt.net.NetService/Nothing")
    refused(lambda: nothing(b"", timeout=SECONDS), CODE.UNIMPLEMENTED, "no method")
    broken = channel.unary_unary("/mvirt.net.NetService/GetNic")
    refused(lambda: broken(b"\xff", timeout=SECONDS), CODE.INTERNAL, "cannot be decoded")
    # What does not print comes through all the same.
    refused(create_network(name="ü%\n", **v4), wrong, "ü%\\n")


def watching(channel: Any) -> None:
    stub = net_grpc.NetServiceStub(channel)
    networks = stub.WatchNetworks(net.WatchNetworksRequest(), timeout=SECONDS)
    nics = stub.WatchNics(net.WatchNicsRequest(), timeout=SECONDS)
    networks.initial_metadata()  # is there before the first event
    assert next(networks).network.name == "blue"
    assert {next(nics).nic.name, next(nics).nic.name} == {"vm1", "vm2"}
    nic = stub.CreateNic(net.CreateNicRequest(network_id="blue"))
    event = next(nics)
    assert (event.nic_id, event.nic) == (nic.id, nic)
    assert event.timestamp > 1_700_000_000
    stub.DeleteNic(net.DeleteNicRequest(id=nic.id))
    event = next(nics)
    assert (event.nic_id, event.HasField("nic")) == (nic.id, False)
    networks.cancel()
    nics.cancel()
    assert blue(stub).nic_count == 2


def frontend(channel: Any) -> None:
    """Says when it watches; a frontend connects then, and goes."""
    stub = net_grpc.NetServiceStub(channel)
    nics = stub.WatchNics(net.WatchNicsRequest(), timeout=SECONDS)
    next(nics), next(nics)
    print("watching", flush=True)
    assert next(nics).nic.state == net.NIC_STATE_ACTIVE
    print("active", flush=True)
    assert next(nics).nic.state == net.NIC_STATE_CREATED


def deadlines(channel: Any) -> None:
    stub = net_grpc.NetServiceStub(channel)
    stream = stub.WatchNics(net.WatchNicsRequest(), timeout=0.2)
    refused(lambda: list(stream), CODE.DEADLINE_EXCEEDED, "")
    for seconds in (0.001, 1e-9):
        try:
            stub.ListNics(net.ListNicsRequest(), timeout=seconds)
        except grpc.RpcError as error:
            assert error.code() is CODE.DEADLINE_EXCEEDED, error
    assert blue(stub).name == "blue"


def compression(channel: Any) -> None:
    stub = net_grpc.NetServiceStub(channel)
    request = net.GetNetworkRequest(name="blue")
    assert stub.GetNetwork(request, compression=grpc.Compression.Gzip).name == "blue"
    bomb = net.GetNetworkRequest(name="0" * 300_000)
    call = stub.GetNetwork
    gzip, deflate = grpc.Compression.Gzip, grpc.Compression.Deflate
    refused(lambda: call(bomb, compression=gzip), CODE.RESOURCE_EXHAUSTED, "more than 262144")
    refused(lambda: call(bomb), CODE.RESOURCE_EXHAUSTED, "262144")
    refused(lambda: call(request, compression=deflate), CODE.UNIMPLEMENTED, "deflate")
    # As large as it may be, more than any window.
    refused(lambda: call(net.GetNetworkRequest(id="0" * 260_000)), CODE.NOT_FOUND, "not found")


def many_at_once(channel: Any) -> None:
    stub = net_grpc.NetServiceStub(channel)
    watchers = [stub.WatchNics(net.WatchNicsRequest(), timeout=SECONDS) for _ in range(64)]

    def take_one(watcher: Any) -> None:
        assert next(watcher).HasField("nic")
        watcher.cancel()

    # No more than 32 at a time, and the client does not say which: the others are waited for until
    # some of those have been cancelled.
    with ThreadPoolExecutor(len(watchers)) as pool:
        list(pool.map(take_one, watchers))
    request = net.GetNetworkRequest(name="blue")
    calls = [stub.GetNetwork.future(request, timeout=SECONDS) for _ in range(500)]
    assert {call.result().name for call in calls} == {"blue"}
    names = [f"many-{n}" for n in range(20)]
    created = [
        stub.CreateNic.future(net.CreateNicRequest(network_id="blue", name=n)) for n in names
    ]
    assert len({call.result().ipv4_address for call in created}) == len(names)
    for call in created:
        stub.DeleteNic(net.DeleteNicRequest(id=call.result().id))


def healthy(channel: Any) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    request = health_pb2.HealthCheckRequest
    serving = health_pb2.HealthCheckResponse.SERVING
    for service in ("", "mvirt.net.NetService", "grpc.health.v1.Health"):
        assert stub.Check(request(service=service), timeout=SECONDS).status == serving
    refused(lambda: stub.Check(request(service="?")), CODE.NOT_FOUND, "'?'")
    statuses = stub.List(health_pb2.HealthListRequest(), timeout=SECONDS).statuses
    assert statuses["mvirt.net.NetService"].status == serving
    watch = stub.Watch(request(service="mvirt.net.NetService"), timeout=SECONDS)
    assert next(watch).status == serving
    watch.cancel()
    unknown = stub.Watch(request(service="?"), timeout=SECONDS)
    assert next(unknown).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN
    unknown.cancel()


def reflected(channel: Any) -> None:
    """By the official client, which speaks v1alpha; the messages of v1 are the same."""
    database = ProtoReflectionDescriptorDatabase(channel)
    assert "mvirt.net.NetService" in database.get_services()
    service = DescriptorPool(database).FindServiceByName("mvirt.net.NetService")
    assert (
        service.methods_by_name["CreateNic"].output_type.fields_by_name["mac_address"].number == 4
    )
    for version in ("v1", "v1alpha"):
        ask = channel.stream_stream(
            f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo",
            request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
            response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
        )
        _check_reflection(ask)


def _check_reflection(ask: Any) -> None:
    request = reflection_pb2.ServerReflectionRequest
    questions = [
        request(list_services="*"),
        request(file_containing_symbol="mvirt.net.Nic.mac_address"),
        request(file_by_filename="grpc/health/v1/health.proto"),
        request(all_extension_numbers_of_type="mvirt.net.Nic"),
        request(file_containing_symbol="no.such"),
        request(file_by_filename="no.proto"),
    ]
    answers = list(ask(iter(questions), timeout=SECONDS))
    names = [service.name for service in answers[0].list_services_response.service]
    assert names == sorted(names)
    assert "mvirt.net.NetService" in names
    [net_file] = answers[1].file_descriptor_response.file_descriptor_proto
    assert b"NetService" in net_file
    assert answers[2].file_descriptor_response.file_descriptor_proto
    assert answers[3].all_extension_numbers_response.base_type_name == "mvirt.net.Nic"
    for answer in answers[4:]:
        assert answer.error_response.error_code == CODE.NOT_FOUND.value[0]


def stopped(channel: Any) -> None:
    """Says when it watches; the daemon is stopped then."""
    stub = net_grpc.NetServiceStub(channel)
    nics = stub.WatchNics(net.WatchNicsRequest(), timeout=SECONDS)
    next(nics), next(nics)
    print("watching", flush=True)
    refused(lambda: list(nics), CODE.UNAVAILABLE, "")


def main() -> None:
    case, target = sys.argv[1:]
    threading.stack_size(256 << 10)
    with grpc.insecure_channel(target) as channel:
        globals()[case](channel)


if __name__ == "__main__":
    main()
