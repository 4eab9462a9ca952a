"""The configuration of each child."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import pytest

from infra.stack import elasticsearch, kafka, triton
from infra.stack.addresses import Addresses
from infra.stack.errors import StackError
from infra.stack.layout import Layout
from infra.stack.supervisor import stop_order
from infra.stack.topology import NAMES, PARTS, SERVICES, environment, scalings, specs

LAYOUT = Layout.of(Path("/h"), Path("/s"))
PORTS = {use: port for spec in specs(LAYOUT) for use, port in spec.ports.items()}
SOCKETS = {use: Path("/s/sockets") / name for spec in specs(LAYOUT) for use, name in spec.sockets.items()}
ADDRESSES = Addresses(PORTS, SOCKETS)


def test_uses_and_usual_ports_are_unique() -> None:
    ports = [(use, port) for spec in specs(LAYOUT) for use, port in spec.ports.items()]
    assert len({use for use, _ in ports}) == len({port for _, port in ports}) == len(ports)


def test_children_need_and_use_children_that_exist() -> None:
    for spec in specs(LAYOUT):
        assert spec.needs | spec.uses <= set(NAMES)


def test_a_selection_is_kept_and_an_unknown_name_refused() -> None:
    assert [spec.name for spec in specs(LAYOUT, ["triton", "kafka"])] == ["kafka", "triton"]
    with pytest.raises(StackError, match="No such part: zookeeper"):
        specs(LAYOUT, ["zookeeper"])


def test_a_service_is_given_longer_to_answer_than_a_part_and_both_can_be_chosen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert {spec.liveness_s for spec in specs(LAYOUT, PARTS)} == {30.0}
    assert {spec.liveness_s for spec in specs(LAYOUT, {"ingest", "gateway"})} == {60.0}
    monkeypatch.setenv("TIDEMILL_LIVENESS_PARTS_S", "5")
    monkeypatch.setenv("TIDEMILL_LIVENESS_SERVICES_S", "7.5")
    assert {spec.liveness_s for spec in specs(LAYOUT)} == {5.0, 7.5}
    monkeypatch.setenv("TIDEMILL_LIVENESS_PARTS_S", "-1")
    with pytest.raises(StackError, match="TIDEMILL_LIVENESS_PARTS_S must be a number of seconds above 0, not '-1'"):
        specs(LAYOUT)


def test_the_gateway_stops_first_telemetry_after_all_services_parts_last() -> None:
    order = stop_order(specs(LAYOUT))
    assert {name.partition("-")[0] for name in order[0]} == {"gateway"}
    place = {name: number for number, group in enumerate(order) for name in group}
    assert all(place["telemetry"] > place[service.name] for service in SERVICES if service.name != "telemetry")
    assert all(place[part] > place["ingest"] for part in PARTS)


def test_gateway_processes_share_the_ports_and_are_probed_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEMILL_GATEWAY_PROCESSES", "3")
    children = specs(LAYOUT, {"gateway"})
    assert [child.name for child in children] == ["gateway", "gateway-2", "gateway-3"]
    assert [sorted(child.ports) for child in children] == [["gateway", "gateway_http"], [], []]
    assert [list(child.sockets.values()) for child in children] == [["gateway-1"], ["gateway-2"], ["gateway-3"]]
    monkeypatch.setenv("TIDEMILL_GATEWAY_PROCESSES", "1")
    assert [child.name for child in specs(LAYOUT, {"gateway"})] == ["gateway"]
    monkeypatch.setenv("TIDEMILL_GATEWAY_PROCESSES", "0")
    with pytest.raises(StackError, match=r"GATEWAY_PROCESSES must be a number from 1 to 64, or a range .*'0'"):
        specs(LAYOUT)


def test_further_processes_of_cleaning_have_sockets_of_their_own_and_no_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    layout = Layout.of(tmp_path / "h", tmp_path / "s")
    assert [child.name for child in specs(layout, {"cleaning"})] == ["cleaning"]
    monkeypatch.setenv("TIDEMILL_CLEANING_PROCESSES", "2-3")
    children = specs(layout, {"cleaning"})
    assert [child.name for child in children] == ["cleaning", "cleaning-2", "cleaning-3"]
    assert [child.standby for child in children] == [False, False, True]
    assert [sorted(child.ports) for child in children] == [["cleaning_metrics"], [], []]
    folder = tmp_path / "sockets"
    sockets = {use: folder / name for child in specs(layout) for use, name in child.sockets.items()}
    addresses = Addresses(PORTS, sockets)
    first, second = (child.prepare(addresses).environment for child in specs(layout, {"cleaning"})[:2])
    assert (first["TIDEMILL_CLEANING_PROCESS"], second["TIDEMILL_CLEANING_PROCESS"]) == ("1", "2")
    assert second["TIDEMILL_CLEANING_PROCESSES"] == "3"
    assert first["TIDEMILL_BIND"] == f"unix:{folder}/cleaning" == second["TIDEMILL_CLEANING_ADDRESS"]
    assert second["TIDEMILL_BIND"] == f"unix:{folder}/cleaning-2"
    assert "TIDEMILL_METRICS_BIND" in first.keys() - second.keys()


def test_a_range_scales_and_a_number_does_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEMILL_GATEWAY_PROCESSES", "2")
    assert scalings(LAYOUT) == []
    monkeypatch.setenv("TIDEMILL_GATEWAY_PROCESSES", "1-3")
    monkeypatch.setenv("TIDEMILL_CLEANING_PROCESSES", "2-6")
    found = {each.service: (each.fewest, each.children) for each in scalings(LAYOUT)}
    assert found["gateway"] == (1, ("gateway", "gateway-2", "gateway-3"))
    assert found["cleaning"] == (2, ("cleaning", *(f"cleaning-{number}" for number in range(2, 7))))
    assert [each.service for each in scalings(LAYOUT, {"cleaning"})] == ["cleaning"]
    monkeypatch.setenv("TIDEMILL_CLEANING_PROCESSES", "1-7")
    with pytest.raises(StackError, match="TIDEMILL_CLEANING_PROCESSES must be a number from 1 to 6"):
        scalings(LAYOUT)


def test_a_running_mesh_says_how_many_processes_a_service_has(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEMILL_GATEWAY_PROCESSES", "1")
    running = ["gateway", "gateway-2", "gateway-3", "cleaning"]
    names = [child.name for child in specs(LAYOUT, {"gateway", "cleaning"}, running=running)]
    assert sorted(names) == sorted(running)


def test_a_circle_is_refused() -> None:
    one, two = specs(LAYOUT, ["kafka", "triton"])
    circle = [
        dataclasses.replace(one, needs=frozenset({"triton"})),
        dataclasses.replace(two, uses=frozenset({"kafka"})),
    ]
    with pytest.raises(StackError, match="circle: kafka, triton"):
        stop_order(circle)


def test_everything_listens_on_loopback_only() -> None:
    properties = kafka.server_properties(Path("/s/kafka"), PORTS, {})
    assert "listeners=BROKER://127.0.0.1:9092,CONTROLLER://127.0.0.1:9093\n" in properties
    assert "0.0.0.0" not in properties
    assert "network.host: 127.0.0.1\n" in elasticsearch.elasticsearch_yml(Path("/s/es"), PORTS)
    for service in SERVICES:
        bind = environment(LAYOUT, ADDRESSES, service)["TIDEMILL_BIND"]
        assert bind == ("127.0.0.1:7100" if service.name == "gateway" else f"unix:/s/sockets/{service.name}")


def test_topics_are_never_made_by_accident() -> None:
    assert "auto.create.topics.enable=false\n" in kafka.server_properties(Path("/s/kafka"), PORTS, {})


def test_each_service_knows_its_parts_and_peers() -> None:
    by_name = {service.name: service for service in SERVICES}
    values = environment(LAYOUT, ADDRESSES, by_name["inference"])
    assert values["TIDEMILL_KAFKA_BOOTSTRAP"] == "127.0.0.1:9092"
    assert values["TIDEMILL_OTLP_ENDPOINT"] == "unix:/s/sockets/telemetry"
    assert values["TIDEMILL_TRITON_GRPC"] == "unix:/s/sockets/triton:1"
    assert values["TIDEMILL_TRITON_REPOSITORY"] == "/s/triton/models"
    assert values["TIDEMILL_DATABASE_URL"] == "sqlite:////s/db/inference.sqlite"
    assert values["TIDEMILL_ARTIFACTS_URL"] == "file:///s/artifacts"
    assert values["TIDEMILL_MODELS_DIR"] == "/h/models"
    assert {f"TIDEMILL_{name.upper()}_ADDRESS" for name in by_name} <= values.keys()
    assert "TIDEMILL_HTTP_BIND" not in values
    assert environment(LAYOUT, ADDRESSES, by_name["gateway"])["TIDEMILL_HTTP_BIND"] == "127.0.0.1:8080"


def test_only_the_doors_listen_elsewhere_than_on_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEMILL_DOORS_HOST", "0.0.0.0")
    for service in SERVICES:
        values = environment(LAYOUT, ADDRESSES, service)
        binds = {values[key] for key in ("TIDEMILL_BIND", "TIDEMILL_HTTP_BIND") if key in values}
        assert {bind.partition(":")[0] for bind in binds} == {"0.0.0.0" if service.name == "gateway" else "unix"}


def test_an_operator_may_choose_other_stores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEMILL_DATABASE_URL", "postgresql://me@db/tidemill")
    monkeypatch.setenv("TIDEMILL_ARTIFACTS_URL", "s3://bucket/tidemill")
    for service in SERVICES:
        values = environment(LAYOUT, ADDRESSES, service)
        assert values["TIDEMILL_DATABASE_URL"] == "postgresql://me@db/tidemill"
        assert values["TIDEMILL_ARTIFACTS_URL"] == "s3://bucket/tidemill"
        assert values["TIDEMILL_MLFLOW_URI"] == "sqlite:////s/mlflow.db"


def test_one_sqlite_file_for_all_services_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TIDEMILL_DATABASE_URL", "sqlite:///all.sqlite")
    with pytest.raises(StackError, match="PostgreSQL"):
        environment(LAYOUT, ADDRESSES, SERVICES[0])


def test_training_gets_all_processors() -> None:
    threads = {service.name: environment(LAYOUT, ADDRESSES, service).get("OMP_NUM_THREADS") for service in SERVICES}
    assert threads["training"] is None
    assert threads["ingest"] == "1"


def test_what_does_not_run_is_not_reported() -> None:
    telemetry = next(service for service in SERVICES if service.name == "telemetry")
    values = environment(LAYOUT, Addresses({"telemetry": 1, "elasticsearch": 2}, {}), telemetry)
    assert values["TIDEMILL_ELASTICSEARCH_URL"] == "http://127.0.0.1:2"
    assert "TIDEMILL_KAFKA_BOOTSTRAP" not in values


def test_the_vector_module_and_collector_logs_are_removed_and_other_options_stay() -> None:
    shipped = "-XX:+UseG1GC\n20-:--add-modules=jdk.incubator.vector\n-Xlog:gc*:file=logs/gc.log\n# a comment\n"
    options = elasticsearch.jvm_options(shipped)
    assert "vector" not in options
    assert "-Xlog" not in options
    assert "-XX:+UseG1GC\n" in options
    assert "-Xmx448m\n" in options


def test_the_view_of_this_environment_leaves_no_byte_code(tmp_path: Path) -> None:
    programs = triton.place_python(tmp_path / "python")
    triton.place_python(tmp_path / "python")
    (hooks,) = (tmp_path / "python").rglob("*.pth")
    assert "dont_write_bytecode = True" in hooks.read_text()
    assert (programs / "python3").resolve().name.startswith(f"python{sys.version_info.major}")
