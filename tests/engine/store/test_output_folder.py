"""-o that names an input is refused in one line, before anything is written; every other folder is taken."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from infercam.engine import Bundle, cli
from infercam.engine.coco.convert import INFO as COCO_INFO
from infercam.engine.common.errors import InputError
from infercam.engine.data.sources import Source, folder_source
from infercam.engine.evaluation.label_folder import INFO as LABEL_INFO
from infercam.engine.store.mapstore import INFO as MAP_INFO
from infercam.engine.store.output_folder import OURS, check_output
from tests.engine import tiny


@pytest.fixture
def data(tmp_path: Path) -> Path:
    return tiny.write_dataset(tmp_path / "data", 3)


@pytest.fixture
def source(data: Path) -> Source:
    return folder_source(data / "images")


@pytest.fixture
def voc(data: Path, tmp_path: Path) -> Path:
    root = tmp_path / "VOC2012"
    (root / "ImageSets" / "Segmentation").mkdir(parents=True)
    (root / "SegmentationClass").mkdir()
    (root / "SegmentationClass" / "p000.png").write_bytes(b"")
    (data / "images").rename(root / "JPEGImages")
    return root


def tree(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def refusal(*args, **more) -> str:
    with pytest.raises(InputError) as error:
        check_output(*args, **more)
    message = str(error.value)
    assert "\n" not in message and message.endswith("; name another folder (a new one is made)")
    return message


def test_our_own_marks() -> None:
    assert set(OURS) == {MAP_INFO, LABEL_INFO, COCO_INFO}


def test_the_images_and_folders_above_them(data: Path, source: Source, monkeypatch) -> None:
    for out in (data / "images", data, data / "images" / ".." / "images", data.parent):
        assert refusal(out, source.ends()).startswith(f"-o {out}: holds the images of this command")
    monkeypatch.chdir(data / "images")
    refusal(".", source.ends())
    (data / "link").symlink_to(data / "images")
    refusal(data / "link", source.ends())
    refusal(data / "images", [data / "images"])
    assert "--heatmaps" in refusal(data / "images", source.ends(), option="--heatmaps")


def test_other_folders_are_taken(data: Path, source: Source, tmp_path: Path) -> None:
    beside = tmp_path / "notes"
    beside.mkdir()
    check_output(beside, source.ends(), [data / "labels.json", None, "voc-xml", "predict"])
    (beside / "todo.txt").write_text("mine")
    (beside / "other.jpg").write_bytes(b"")
    check_output(beside, source.ends())
    check_output(data / "images" / "maps", source.ends())
    check_output(tmp_path / "new" / "deep", source.ends())
    check_output(data / "labels.json", source.ends())  # a file: told by whoever writes
    check_output(beside, [])


@pytest.mark.parametrize("name", OURS)
def test_a_folder_of_ours_is_gone_on_with(data: Path, source: Source, name: str) -> None:
    (data / name).write_text("{}")
    check_output(data, source.ends())
    assert "is what this command reads" in refusal(data, source.ends(), [data])


def test_a_bundle(tiny_bundle: Bundle) -> None:
    assert "is a bundle" in refusal(tiny_bundle.path)
    assert "is what this command reads" in refusal(tiny_bundle.path, reads=[tiny_bundle.path])


def test_a_voc_tree(voc: Path) -> None:
    for folder in ("", "JPEGImages", "SegmentationClass", "ImageSets"):
        assert "VOC tree" in refusal(voc / folder)
    check_output(voc / "Annotations")  # not there
    check_output(voc / "SegmentationClassAug")
    (voc / "maps").mkdir()
    (voc / "maps" / "a").write_text("")
    check_output(voc / "maps")


def test_a_coco_tree(tmp_path: Path) -> None:
    (tmp_path / "coco" / "annotations").mkdir(parents=True)
    (tmp_path / "coco" / "annotations" / "instances_val2014.json").write_text("{}")
    assert "is a COCO tree" in refusal(tmp_path / "coco")


def test_uris() -> None:
    images = ["s3://user:secret@bucket/photos/train?region=eu"]
    for out in ("s3://bucket/photos/train", "s3://bucket/photos/", "s3:/bucket/photos?scheme=http"):
        assert "secret" not in refusal(out, images)
    check_output("s3://bucket/photos/train-maps", images)
    check_output("s3://other/photos/train", images)
    check_output("maps", images)


# -- the commands ------------------------------------------------------------------------------------------------
def error(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], *args: object) -> str:
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["infercam", *map(str, args)])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    err = capsys.readouterr().err
    assert ended.value.code == 1 and err.startswith("error: ") and err.count("\n") == 1, err
    return err


def test_the_commands_refuse_before_they_write(
    data: Path, tiny_bundle: Bundle, tmp_path: Path, monkeypatch, capsys
) -> None:
    images, labels = data / "images", data / "labels.json"
    run = ["run", tiny_bundle.path, "--images", images, "--labels", labels]
    maps, before = tmp_path / "maps", tree(data)
    monkeypatch.setattr(sys, "argv", ["infercam", *map(str, run), "-o", str(maps)])
    with pytest.raises(SystemExit):
        cli.main()
    kept, bundle = tree(maps), tree(tiny_bundle.path)
    config = tmp_path / "config.toml"
    config.write_text(
        f'[data]\nimages = "{images}"\nlabels = "{labels}"\n[maps]\nbundle = "{tiny_bundle.path}"\n'
    )
    for command in (
        ["pipeline", config, "-o", images],
        [*run, "-o", images],
        [*run, "-o", data],
        [*run, "-o", tiny_bundle.path],
        [*run, "-o", tmp_path / "new", "--heatmaps", images],
        ["convert", maps, tiny_bundle.path, "--from", "npz", "--to", "npz"],
        ["labels", maps, "-o", maps],
        ["labels", maps, "-o", images, "--images", images],
        ["saliency", "-o", images, "--images", images],
        ["segment", maps, "-o", images, "--images", images],
        ["affinity", maps, "-o", images, "--images", images],
        ["walk", maps, "--affinity", "none.pth", "-o", images, "--images", images],
        ["segment-test", "none.pth", "-o", images, "--images", images],
        ["classify", "-o", images, "--images", images, "--labels", labels],
        ["bench", tiny_bundle.path, "--folder", images, "-o", images],
        ["package", "triton", tiny_bundle.path, "-o", tiny_bundle.path],
    ):
        assert "name another folder" in error(monkeypatch, capsys, *command), command
    assert "holds files that are not a demo's" in error(monkeypatch, capsys, "demo", "--out", images)
    page = error(monkeypatch, capsys, "report", maps, "--images", images, "-o", images)
    assert "name the page to write" in page
    assert "not a bundle" in error(monkeypatch, capsys, "export", tiny_bundle.graph(), "-o", images)
    assert (tree(data), tree(maps), tree(tiny_bundle.path)) == (before, kept, bundle)
    assert not (tmp_path / "new").exists()
