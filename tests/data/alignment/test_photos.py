"""Photographs given as aligned faces: refused by the sizes in their headers, wherever pictures meet a network."""

from collections import Counter
from pathlib import Path

import pytest
from conftest import SMALL
from PIL import Image

from data.check.image_scan import SAMPLE, are_photographs, check_shapes
from data.faces import index_identity_folders, index_names, index_pictures
from data.record_packing import pack_folder
from data.records import index_record_file
from meta import TRAINING_SETS, UserError

PHOTOGRAPHS = [(100, 130), (90, 120), (160, 120), (130, 100), (80, 140), (96, 151)]
ONE_SIZE = [(178, 218)] * 6  # CelebA's aligned pictures


def write(folder: Path, sizes: list[tuple[int, int]], fgnet: bool = False) -> Path:
    """Pictures of these sizes as identity folders of three, with ages in their names."""
    for number, size in enumerate(sizes):
        person = f"{number // 3:03d}"
        name = f"{person}A{number:02d}.JPG" if fgnet else f"{number:03d}_age_{20 + number % 9}.jpg"
        (folder / person).mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size, (number * 20 % 256, 90, 120)).save(folder / person / name)
    return folder


@pytest.mark.parametrize(("sizes", "expected"), [
    ([(112, 112)] * 6, "silent"), ([(256, 256)] * 6, "silent"),  # MS1MV3 as the authors have it
    ([(90, 90), (131, 131), (250, 250), (64, 64), (400, 400), (77, 77)], "silent"),
    ([(112, 112)] * 19 + [(300, 400)], "silent"),  # some odd one out
    (ONE_SIZE, "warning"), ([(112, 96)] * 6, "warning"), ([(178, 218)] * 3 + [(112, 112)] * 3, "warning"),
    ([(200, 240), (400, 480)] * 3, "error"), ([(250, 333), (333, 250)] * 3, "error"),  # one camera, held in two ways
    ([(101, 108), (95, 99), (110, 104), (87, 92), (120, 113), (99, 105)], "warning"),  # a detector's tight boxes
    ([(1000, 1300)] * 6, "warning"), (PHOTOGRAPHS, "error"),
    ([(1000, 1300), (900, 1200), (1200, 1600), (750, 1000)], "error"),  # of one shape, but nobody's output
    ([(112, 112)] * 10 + PHOTOGRAPHS, "error"),
], ids=range(14))  # fmt: skip
def test_many_sizes_that_are_not_square_are_photographs_and_one_is_a_warning(tmp_path, sizes, expected):
    """15: photographs are an error, one size that is not square a warning, aligned sets of others pass in silence."""
    faces, said = index_pictures(write(tmp_path, sizes)), []
    assert are_photographs(Counter(sizes)) == (expected == "error")
    if expected == "error":
        with pytest.raises(UserError, match="are photographs and no aligned faces: align them .*--assume-aligned"):
            check_shapes(faces, said.append)
        assert said == []
        return
    check_shapes(faces, said.append)
    assert len(said) == (expected == "warning")
    if said:
        assert "{}x{}".format(*Counter(sizes).most_common(1)[0][0]) in said[0] or "101x108" in said[0]
        assert "squashed to 112x112" in said[0]


def test_the_sample_is_spread_over_the_whole_set_and_of_a_bounded_size(tmp_path, monkeypatch):
    """15: photographs at the end of a large set are found, by no more than 200 headers."""
    (tmp_path / "a").mkdir()
    Image.new("RGB", (112, 112)).save(tmp_path / "a" / "face.png")
    for number, size in enumerate(PHOTOGRAPHS):
        Image.new("RGB", size).save(tmp_path / "a" / f"{number}.png")
    names = ["a/face.png"] * 900 + [f"a/{number % len(PHOTOGRAPHS)}.png" for number in range(300)]
    looked_at = []
    monkeypatch.setattr(
        "data.check.image_scan.picture_size", lambda path: looked_at.append(path) or Image.open(path).size
    )
    with pytest.raises(UserError, match=rf"50 of {SAMPLE} pictures looked at .* and of many sizes"):
        check_shapes(index_names(tmp_path, names), print)
    assert len(looked_at) == SAMPLE
    assert len(set(looked_at)) == 1 + len(PHOTOGRAPHS)  # although they come in turn


def test_broken_pictures_are_left_to_those_who_decode_them(tmp_path):
    """15: what has no header, or is not there, counts for nothing; nothing is decoded."""
    folder = write(tmp_path / "faces", [(112, 112)] * 6)
    (folder / "000" / "000_age_20.jpg").write_bytes(b"no picture")
    (folder / "000" / "001_age_21.jpg").unlink()
    (folder / "000" / "001_age_21.jpg").symlink_to("nowhere")
    good = (folder / "000" / "002_age_22.jpg").read_bytes()
    (folder / "000" / "002_age_22.jpg").write_bytes(good[: len(good) // 2])  # its header is whole
    said = []
    check_shapes(index_pictures(folder), said.append)
    for path in folder.rglob("*.jpg"):
        path.unlink()
        path.write_bytes(b"")
    check_shapes(index_pictures(folder), said.append)
    assert said == []


def test_record_files_are_looked_at_too(tmp_path):
    """15: photographs packed into a train.rec are photographs."""
    photographs = index_identity_folders(write(tmp_path / "photos", PHOTOGRAPHS), None)
    pack_folder(photographs, tmp_path / "train.rec")
    with pytest.raises(UserError, match=r"6 of 6 pictures looked at in '.*train\.rec'"):
        check_shapes(index_record_file(tmp_path / "train.rec"), print)


@pytest.fixture
def train(run_main, age_weights, tmp_path):
    def run(folder: Path, *flags: object):
        return run_main("train", "--train-data", folder, "--age-weights", age_weights, "--run-folder", tmp_path / "run",
                        "--cache-folder", tmp_path / "cache", *SMALL, "--epochs", 1, *flags)  # fmt: skip

    return run


def test_train_refuses_photographs_unless_insisted(train, tmp_path):
    """15: train.py on photographs of 1000x1300 and the like is an error; --assume-aligned insists."""
    sizes = [(1000, 1300), (1300, 1000), (900, 1200), (640, 480), (800, 1100), (1000, 1250)]
    folder = write(tmp_path / "photos", sizes)
    refused = train(folder)
    assert refused.status == 2 and "6 of 6 pictures" in refused.err and "embed.py --detector" in refused.err
    assert not (tmp_path / "run").exists()
    insisted = train(folder, "--assume-aligned")
    assert insisted.status == 0 and "squashed" not in insisted.out + insisted.err, insisted.err
    assert train(folder, "--epochs", 2).status == 2  # resumed without the flag it is asked again
    assert train(folder, "--assume-aligned", "--epochs", 1).status == 0  # and the flag is no other setting


def test_train_warns_of_one_size_that_is_not_square(train, tmp_path):
    """15: pictures of one size, as others may have aligned them, are trained on with a warning."""
    outcome = train(write(tmp_path / "celeba", ONE_SIZE))
    assert outcome.status == 0, outcome.err
    assert (outcome.out + outcome.err).count("6 of 6 pictures looked at") == 1 and "178x218" in outcome.out


def test_train_refuses_to_validate_on_photographs(train, tiny_faces, tmp_path):
    """15: a validation set of photographs is found before training."""
    write(tmp_path / "face_dataset" / "ID_processed_FGNET", PHOTOGRAPHS, fgnet=True)
    outcome = train(tiny_faces / TRAINING_SETS["ms1mv3"].folder, "--validate-every", 1, "--validate-on", "fgnet",
                    "--face-dataset", tmp_path / "face_dataset")  # fmt: skip
    assert outcome.status == 2 and "ID_processed_FGNET' are not square" in outcome.err, outcome.err
    assert not (tmp_path / "run").exists()


def test_a_test_set_of_photographs_ends_its_own_setting_alone(run_test, tiny_faces, tmp_path):
    """15: test.py refuses a set of photographs, tests the others, and tests all where --assume-aligned insists.

    Pictures among which others are searched meet the network too.
    """
    root = tmp_path / "face_dataset"
    write(root / "ID_processed_FGNET", PHOTOGRAPHS, fgnet=True)
    (root / "CALFW").symlink_to(tiny_faces / "CALFW")
    outcome, model = run_test(root, "--benchmarks", "fgnet", "calfw")
    assert outcome.status == 2 and "FG-NET did not run" in outcome.err and "--assume-aligned" in outcome.err
    assert list(model["results"]) == ["calfw"] and list(model["did_not_run"]) == ["fgnet"]
    assert run_test(root, "--benchmarks", "fgnet", "calfw", "--assume-aligned")[0].status == 0
    crowd = write(tmp_path / "crowd", PHOTOGRAPHS)
    outcome, _ = run_test(tiny_faces, "--benchmarks", "fgnet", "--distractors", crowd)
    assert outcome.status == 2 and "crowd' are not square" in outcome.err


def test_bin_does_not_squash_photographs(run_main, tmp_path):
    """15: prepare.py bin --reencode refuses photographs unless insisted; without --reencode the flag is an error."""
    folder = write(tmp_path / "photos", PHOTOGRAPHS)
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.jpg"))
    pairs = list(zip(names[::2], names[1::2], strict=True))
    (tmp_path / "pairs.txt").write_text("".join(f"{a} {b} 1\n{a} {a} 0\n" for a, b in pairs * 4))
    flags = ("bin", "--pairs", tmp_path / "pairs.txt", "--images", folder, "--output", tmp_path / "mine.bin")
    refused = run_main("prepare", *flags, "--reencode")
    assert refused.status == 2 and "are photographs" in refused.err and not (tmp_path / "mine.bin").exists()
    unasked = run_main("prepare", *flags, "--assume-aligned")
    assert unasked.status == 2 and "--assume-aligned does nothing" in unasked.err and "--reencode" in unasked.err
    plain = run_main("prepare", *flags)
    assert plain.status == 2 and "prepare.py align-" in plain.err and "--reencode" in plain.err
    insisted = run_main("prepare", *flags, "--reencode", "--assume-aligned")
    assert insisted.status == 0 and "6 encoded again" in insisted.out, insisted.err


def test_no_age_is_estimated_on_photographs(run_main, age_weights, tmp_path):
    """15: prepare.py ages --weights shows pictures to a network as well, so it refuses them, in a dry run too."""
    folder = write(tmp_path / "photos", PHOTOGRAPHS)
    flags = ("ages", "--data", folder, "--output", tmp_path / "ages.csv")
    estimate = ("--weights", age_weights, "--workers", 0, "--device", "cpu")
    for dry_run in ((), ("--dry-run",)):
        refused = run_main("prepare", *flags, *estimate, *dry_run)
        assert refused.status == 2 and "are photographs" in refused.err
    assert run_main("prepare", *flags, *estimate, "--assume-aligned").status == 0
    from_names = ("--from-names", "ms1mv3", "--force")
    assert run_main("prepare", *flags, *from_names).status == 0  # no network, no question
    unasked = run_main("prepare", *flags, *from_names, "--assume-aligned")
    assert unasked.status == 2 and "--assume-aligned does nothing" in unasked.err and "--weights" in unasked.err


def test_no_ranges_are_taken_from_photographs(run_main, weights, tmp_path):
    """15: export.py shows pictures to the network too, to calibrate int8 and to measure what is lost."""
    write(tmp_path / "photos", PHOTOGRAPHS)
    write(tmp_path / "face_dataset" / "ID_processed_FGNET", PHOTOGRAPHS, fgnet=True)
    of_pictures = ("--precision", "int8", "--calibration-pictures", tmp_path / "photos")
    of_benchmark = ("--measure-on", "fgnet", "--face-dataset", tmp_path / "face_dataset")
    for flags in (of_pictures, of_benchmark):
        outcome = run_main("export", "--weights", weights, "-o", tmp_path / "x.onnx", *flags)
        assert outcome.status == 2 and "are photographs" in outcome.err, outcome.err
    assert not (tmp_path / "x.onnx").exists()


def test_check_calls_wrong_what_the_others_refuse(run_main, tmp_path):
    """15: the dataset check says of a set of photographs what train.py and test.py say."""
    write(tmp_path / "ID_processed_FGNET", PHOTOGRAPHS, fgnet=True)
    flags = ("check", "fgnet", "--face-dataset", tmp_path, "--workers", 0)
    outcome = run_main("prepare", *flags)
    assert outcome.status == 1 and "these are photographs and no aligned faces: align them" in outcome.out
    for path in (tmp_path / "ID_processed_FGNET").rglob("*.JPG"):
        Image.effect_noise((178, 218), 50).convert("RGB").save(path)
    assert "photographs" not in run_main("prepare", *flags).out
