"""`infercam run` from and to S3: moto's server on loopback, through pyarrow's own S3 client."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from infercam.engine import Bundle
from infercam.engine.data.remote import RemoteStorage
from infercam.engine.data.storage import LocalStorage, open_storage
from infercam.engine.store.mapstore import MapStore
from tests.engine import tiny

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not all(map(importlib.util.find_spec, ("moto", "pyarrow", "ray"))),
        reason="needs moto's server, pyarrow and ray: infercam[cluster], moto[server]",
    ),
]


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The options of a URI that reach the server."""
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    keys = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_EC2_METADATA_DISABLED": "true"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in keys.items():
            patch.setenv(name, value)
        options = f"scheme=http&endpoint_override=127.0.0.1%3A{port}&region=us-east-1"
        yield f"{options}&allow_bucket_creation=true"
    server.stop()


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, s3: str) -> Path:
    data = tiny.write_dataset(tmp_path_factory.mktemp("data"), 12, (40, 52))
    place = open_storage(f"s3://photos/train?{s3}")
    assert isinstance(place, RemoteStorage)
    place._fs.create_dir("photos")
    for file in sorted((data / "images").iterdir()):
        place.write(f"deep/{file.name}", file.read_bytes())
    place._fs.create_dir("maps")
    raw = json.loads((data / "labels.json").read_text())
    raw["labels"] = {f"deep/{id}": labels for id, labels in raw["labels"].items()}
    (data / "labels.json").write_text(json.dumps(raw))
    return data


def run(bundle: Bundle, data: Path, images: str, out: str, *more: str) -> dict[str, object]:
    command = [sys.executable, "-c", "from infercam.engine.cli import main; main()", "run", str(bundle.path)]
    command += ["--images", images, "--labels", str(data / "labels.json"), "-o", out, "--json", "-", *more]
    done = subprocess.run(
        [*command, "--backend", "cpu", "--threads", "1"],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "[20" not in done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def near(tiny_bundle: Bundle, data: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Maps by name, of one process that reads and writes on this machine; `settings` name another source."""
    images, out = tmp_path_factory.mktemp("images"), tmp_path_factory.mktemp("near") / "out"
    (images / "deep").symlink_to(data / "images")
    run(tiny_bundle, data, str(images), str(out))
    store = MapStore.open(out)
    return {id: store.read(id).maps.tobytes() for id in store.ids()}


def maps_of(out: str) -> dict[str, bytes]:
    store = MapStore.open(out)
    return {id: store.read(id).maps.tobytes() for id in store.ids()}


def test_one_process_from_and_to_s3(tiny_bundle: Bundle, data: Path, s3: str, near: dict[str, bytes]) -> None:
    images, out = f"s3://photos/train?{s3}", f"s3://maps/one?{s3}"
    assert run(tiny_bundle, data, images, out)["done"] == 12
    assert maps_of(out) == near
    found = run(tiny_bundle, data, images, out)
    assert (found["done"], found["kept"]) == (0, 12)
    assert found["settings"]["source"]["root"] == "s3://photos/train"  # type: ignore[index]


def test_a_cluster_from_and_to_s3(
    tiny_bundle: Bundle, data: Path, s3: str, near: dict[str, bytes], tmp_path: Path
) -> None:
    from pyarrow.fs import LocalFileSystem, copy_files

    images, out = f"s3://photos/train?{s3}", f"s3://maps/ray?{s3}"
    run(tiny_bundle, data, images, out, "--shard", "2/2")
    found = run(tiny_bundle, data, images, out, "--cluster", "ray", "--workers", "2")
    assert (found["done"], found["kept"]) == (6, 6)
    assert maps_of(out) == near
    place = open_storage(out)
    assert isinstance(place, RemoteStorage)
    copy_files("maps/ray", str(tmp_path), place._fs, LocalFileSystem())
    local = LocalStorage(tmp_path)
    assert {name for name, _ in local.files()} == {name for name, _ in place.files()}
    assert {id: MapStore.open(tmp_path).read(id).maps.tobytes() for id in near} == near
    assert run(tiny_bundle, data, images, str(tmp_path))["kept"] == 12, "the copy goes on as a local store"


def test_a_bucket_that_is_not_there_is_one_line(tiny_bundle: Bundle, data: Path, s3: str) -> None:
    command = [
        sys.executable,
        "-c",
        "from infercam.engine.cli import main; main()",
        "run",
        str(tiny_bundle.path),
    ]
    options = s3.replace("&allow_bucket_creation=true", "")
    for images, out in [
        (f"s3://nowhere/x?{options}", "out"),
        (f"s3://photos/train?{options}", f"s3://nowhere/x?{options}"),
    ]:
        done = subprocess.run(
            [*command, "--images", images, "--labels", "predict", "-o", out],
            capture_output=True,
            text=True,
            timeout=120,
            cwd=data,
        )
        assert done.returncode == 1 and done.stderr.startswith("error: s3://nowhere/x"), done.stderr
        assert done.stderr.count("\n") == 1
