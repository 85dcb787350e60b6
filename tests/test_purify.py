"""purify.py: afterwards no linear reader finds the age in what the new file gives; every source of ages, every mistake.

Most tests purify an ONNX model of six numbers, for which six pictures would be enough.
"""

import contextlib
import io
import json
import shutil
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from golden_weights import fill
from PIL import Image
from processes import in_processes
from scripts import SLIM, load_script
from sklearn.linear_model import Ridge
from sklearn.preprocessing import StandardScaler

from data.faces import index_pictures
from evaluation.embeddings.networks import open_network
from evaluation.erasure import features as feature_module
from evaluation.erasure.sources import features_of
from evaluation.probes import RIDGE_ALPHA, person_folds
from meta import AGE_GROUP_MIDDLES
from models.erasure import ErasureFitter, spline
from models.export_files import read_onnx
from models.iefp import IEFP
from models.others.onnx_network import OnnxNetwork
from models.weights import iefp_file_tensors, load_for_embedding
from utils.cli import parse_config, run_script
from utils.distributed import DistInfo

onnx = pytest.importorskip("onnx")
pytest.importorskip("onnxruntime")
NUM_PICTURES = 60
PROCESS = DistInfo(0, 1, torch.device("cpu"))
SMALL = ("--workers", "0", "--device", "cpu")


@pytest.fixture(scope="module")
def few(tmp_path_factory) -> Path:
    """A flat folder of noise that darkens with the age, which the names hold as MS1MV3's do."""
    folder, draw = tmp_path_factory.mktemp("few") / "pictures", np.random.default_rng(0)
    folder.mkdir()
    for k in range(NUM_PICTURES):
        age = int(draw.integers(0, 90))
        pixels = draw.integers(0, 256 - age, (14, 14, 3), dtype=np.uint8).repeat(8, axis=0).repeat(8, axis=1)
        Image.fromarray(pixels).save(folder / f"{5_000_000 + k}_age_{age}.jpg", quality=95)
    return folder


@pytest.fixture(scope="module")
def network(tmp_path_factory) -> Path:
    return save_network(tmp_path_factory.mktemp("network") / "w600k.onnx")


def save_network(path: Path, bytes_inside: bool = False, scale: float = 1.0, side: int = 112) -> Path:
    """An ONNX model of six numbers, linear in the pixels' means over squares, that takes one picture at a time."""
    helper, number, draw = onnx.helper, onnx.TensorProto.FLOAT, np.random.default_rng(3)
    weights = {"w": scale * draw.standard_normal((3 * (side // 16) ** 2, 6)) / 7, "mean": 127.5, "factor": 1 / 127.5}
    pixels = [helper.make_node("Sub", ["input.1", "mean"], ["a"], "Sub_1"),
              helper.make_node("Mul", ["a", "factor"], ["b"], "_mul0")]  # fmt: skip
    nodes = [
        *(pixels if bytes_inside else []),
        helper.make_node("AveragePool", ["b" if bytes_inside else "input.1"], ["c"], kernel_shape=[16, 16],
                         strides=[16, 16]),
        helper.make_node("Flatten", ["c"], ["d"]),
        helper.make_node("MatMul", ["d", "w"], ["683"]),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "faces", [helper.make_tensor_value_info("input.1", number, (1, 3, side, side))],
        [helper.make_tensor_value_info("683", number, (1, 6))],
        [onnx.numpy_helper.from_array(np.float32(value), name) for name, value in weights.items()],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    path.write_bytes(model.SerializeToString())
    return path


def purify(run_main, weights: Path, data: Path, output: Path, *flags: object):
    """purify.py in this process, its cache beside the output."""
    return run_main("purify", "--weights", weights, "--data", data, "-o", output, "--cache-folder",
                    output.parent / "cache", "--knots", 8, 16, 30, 50, 80, *SMALL, *flags)  # fmt: skip


def facts_of(path: Path) -> dict:
    return json.loads(path.read_text())["erasure"]


def cached_features(folder: Path, size: int) -> np.ndarray:
    """(N, 2, size) out of the one piece that is cached there."""
    (path,) = (folder / "cache").glob("features_*.npy")
    return np.load(path)[:, : 2 * size].reshape(-1, 2, size)


def ages_of(folder: Path) -> np.ndarray:
    """The ages in the names, in their order."""
    return np.array([float(path.stem.split("_")[-1]) for path in sorted(folder.rglob("*.jpg"))])


def images_of(folder: Path, num_images: int) -> torch.Tensor:
    faces = index_pictures(folder)
    return torch.stack([faces.decode(i) for i in range(num_images)])


def linear_share(features: np.ndarray, ages: np.ndarray) -> float:
    """The largest correlation of a number of the features with a function of the spline's basis."""
    rows, functions = (values - values.mean(axis=0) for values in (features, spline()(ages)))
    return np.abs(rows.T @ functions / len(ages) / np.outer(rows.std(axis=0), functions.std(axis=0))).max()


def in_one_sentence(outcome, words: str) -> None:
    assert outcome.status == 2 and words in outcome.err and outcome.err.count("\n") == 1, outcome


# ---------------------------------------------------------------------------------------------------- what it promises


class Purified(NamedTuple):
    before: Path
    after: Path
    out: str


@pytest.fixture(scope="module", params=[0, 1], ids=["InsightFace", "IEFP"])
def purified(request, few, tmp_path_factory) -> Purified:
    """A backbone of InsightFace, and a model with a purification unit; more pictures would only take more time."""
    folder, model = tmp_path_factory.mktemp("purified"), fill(IEFP(SLIM, request.param, None))
    before, after = folder / "before.pth", folder / "after.pth"
    torch.save(iefp_file_tensors(model) if request.param else model.backbone_id.state_dict(), before)
    flags = ["--weights", before, "--data", few, "-o", after, "--cache-folder", folder / "cache",
             "--knots", 8, 16, 30, 50, 80, *SMALL]  # fmt: skip
    module = load_script("purify")
    with contextlib.redirect_stdout(io.StringIO()) as printed, pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "check_enough", lambda *_: None)
        module.purify(parse_config(module.PurifyConfig, [*map(str, flags)]))
    return Purified(before, after, printed.getvalue())


def test_no_linear_reader_finds_the_age_in_what_the_new_file_gives(purified, few):
    """It gives the features of the old one less what the basis finds of the age, to 1e-5, and says what went."""
    images, years = images_of(few, 8), np.repeat(ages_of(few), 2)
    views = cached_features(purified.before.parent, 512)
    np.testing.assert_allclose(views[:8, 0], features_of(load_for_embedding(purified.before)[0], images), atol=1e-4)
    features, fitter = views.reshape(-1, 512), ErasureFitter(512)
    fitter.add(features, years)
    erasure = fitter.solve()
    left, expected = erasure(features), erasure(views[:8, 0])
    found = features_of(load_for_embedding(purified.after)[0], images)
    assert np.abs(found - expected).max() < 2e-5 * np.abs(expected).max()
    assert linear_share(features, years) > 0.2 and linear_share(left, years) < 1e-9
    facts = facts_of(purified.after.with_suffix(".json"))
    assert (facts["num_pictures"], facts["num_people"], facts["folds_by"]) == (NUM_PICTURES, None, "pictures")
    assert facts["years"] == {"min": years.min(), "median": np.median(years), "max": years.max()}
    assert facts["age_r2_before"] > 0.3 > 0.15 > facts["age_r2_after"]
    removed = 1 - left.var(axis=0).sum() / features.var(axis=0).sum()
    assert facts["variance_removed_percent"] == pytest.approx(100 * removed, rel=1e-4) and facts["basis"] == "spline"
    assert "ages by the file names (ms1mv3)" in purified.out and "erased: 5 directions of 512" in purified.out


def test_the_new_file_is_embedded_and_tested_as_any_other_and_not_purified_again(
    purified, few, run_main, tiny_faces, tmp_path
):
    pictures = sorted((tiny_faces / "ID_processed_FGNET" / "001").iterdir())[:2]
    embedded = run_main("embed", *pictures, "--weights", purified.after, "--assume-aligned", "--device", "cpu")
    assert embedded.status == 0 and "cosine" in embedded.out
    tested = run_main("test", "--weights", purified.after, "--face-dataset", tiny_faces, "--benchmarks", "fgnet",
                      "--no-analysis", "--no-keep-embeddings", "--output", tmp_path, *SMALL)  # fmt: skip
    assert tested.status == 0 and "leave-one-out rank-1" in tested.out
    in_words = f"5 directions, fitted to {NUM_PICTURES} pictures of {ages_of(few).min():.0f} to "
    assert (
        f"{purified.after.name}: age erased by purify.py, {in_words}" in tested.out
        and in_words in (tmp_path / "report.html").read_text()
    )
    (model,) = json.loads((tmp_path / "results.json").read_text())["models"]
    assert model["erasure"] == facts_of(purified.after.with_suffix(".json"))
    in_one_sentence(purify(run_main, purified.after, few, tmp_path / "twice.pth"), "purified already")
    in_one_sentence(purify(run_main, purified.before, few, purified.after), "exists: give another name, or --force")


@pytest.mark.parametrize("bytes_inside", [False, True])
def test_an_onnx_model_keeps_its_names_and_loses_the_age(bytes_inside, few, network, run_main, tmp_path):
    """Also one that normalises pixels itself, as InsightFace's out of mxnet do; a second time is refused."""
    before, after = save_network(tmp_path / "old.onnx", bytes_inside), tmp_path / "new.onnx"
    assert purify(run_main, before, few, after).status == 0
    model = read_onnx(after)
    assert [one.name for one in (*model.graph.input, *model.graph.output)] == ["input.1", "683"]
    images, years = images_of(few, NUM_PICTURES), ages_of(few)
    plain, old, new = (features_of(open_network(path, PROCESS).model, images) for path in (network, before, after))
    np.testing.assert_allclose(old, plain, atol=1e-5)
    fitter = ErasureFitter(6)
    fitter.add(cached_features(tmp_path, 6).reshape(-1, 6), np.repeat(years, 2))
    np.testing.assert_allclose(new, fitter.solve()(old), atol=1e-5)
    described = open_network(after, PROCESS).described["erasure"]
    assert described["rank"] == 5 and described["num_pictures"] == NUM_PICTURES
    in_one_sentence(purify(run_main, after, few, tmp_path / "twice.onnx"), "purified already")


@pytest.mark.parametrize("people", [None, 12])
def test_the_reported_r2_is_that_of_ridge_regression_on_folds_left_out(people, few, network, run_main, tmp_path):
    """Held to scikit-learn on the features themselves; what is reported is computed from sums. Folds are of people."""
    data = few if people is None else in_folders(few, tmp_path / "people", people)
    assert purify(run_main, network, data, tmp_path / "new.onnx").status == 0
    features, years = cached_features(tmp_path, 6), ages_of(data)
    folds = np.random.default_rng(0).permutation(NUM_PICTURES) % 5
    if people is not None:
        folds = person_folds(np.repeat(np.arange(people), NUM_PICTURES // people), seed=0)
    errors = {"before": np.zeros(len(RIDGE_ALPHA)), "after": np.zeros(len(RIDGE_ALPHA))}
    for fold in range(5):
        (rest, age), (test, test_age) = ((features[own].reshape(-1, 6), np.repeat(years[own], 2))
                                         for own in (folds != fold, folds == fold))  # fmt: skip
        fitter = ErasureFitter(6)
        fitter.add(rest, age)
        for name, change in (("before", np.asarray), ("after", fitter.solve())):
            scaler = StandardScaler().fit(change(rest))
            for k, alpha in enumerate(RIDGE_ALPHA):
                ridge = Ridge(alpha).fit(scaler.transform(change(rest)), age)
                errors[name][k] += np.square(ridge.predict(scaler.transform(change(test))) - test_age).sum()
    facts = facts_of(tmp_path / "new.onnx.json")
    spread = 2 * np.square(years - years.mean()).sum()
    for name, found in errors.items():
        assert facts[f"age_r2_{name}"] == pytest.approx(1 - found.min() / spread, abs=1e-6)
    assert facts["age_r2_before"] > 0.2 and facts["num_people"] == people


def in_folders(flat: Path, folder: Path, people: int) -> Path:
    """The pictures, in their order, in folders of as many people."""
    for k, path in enumerate(sorted(flat.iterdir())):
        place = folder / f"{k * people // NUM_PICTURES:03d}" / path.name
        place.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, place)
    return folder


# ----------------------------------------------------------------------------------------------------- sources of ages


def test_ages_come_from_a_table_from_record_labels_or_from_names(few, network, run_main, tmp_path):
    """The same ages give the same file, whatever they come from; a table goes before names."""
    data = in_folders(few, tmp_path / "people", 12)
    names = sorted(path.relative_to(data).as_posix() for path in data.rglob("*.jpg"))
    table = tmp_path / "ages.csv"
    table.write_text("".join(f"{name},{name.split('_')[-1][:-4]}\n" for name in names))
    packed = tmp_path / "packed" / "train.rec"
    assert run_main("prepare", "pack", "--data", data, "--from-names", "ms1mv3", "--output", packed).status == 0
    plain = shutil.copytree(data, tmp_path / "plain")
    for path in list(plain.rglob("*.jpg")):
        path.rename(path.with_name(path.name.replace("_age_", "-")))
    other_table = tmp_path / "others.csv"
    other_table.write_text(table.read_text().replace("_age_", "-"))
    content = {}
    for name, place, words, flags in (
        ("names", data, "the file names (ms1mv3)", ("--names", "ms1mv3")),
        ("table", data, f"the table {table}", ("--ages", table)),
        ("only table", plain, f"the table {other_table}", ("--ages", other_table)),
        ("records", packed, "the labels of the record file", ()),
    ):
        output = tmp_path / name / "new.onnx"
        output.parent.mkdir()
        outcome = purify(run_main, network, place, output, *flags)
        assert outcome.status == 0 and f"; ages by {words}\n" in outcome.out, outcome
        content[name] = {one.name: onnx.numpy_helper.to_array(one) for one in read_onnx(output).graph.initializer}
        assert facts_of(Path(f"{output}.json"))["ages_from"] == words
    for name, arrays in content.items():
        for key, array in arrays.items():
            np.testing.assert_allclose(array, content["names"][key], atol=1e-5, err_msg=f"{name} {key}")
    in_one_sentence(purify(run_main, network, packed, tmp_path / "x.onnx", "--names", "fgnet"), "--names does nothing")
    unlabelled = tmp_path / "unlabelled" / "train.rec"
    assert run_main("prepare", "pack", "--data", data, "--output", unlabelled).status == 0
    in_one_sentence(purify(run_main, network, unlabelled, tmp_path / "x.onnx"), "their names or labels hold none")


def test_pictures_without_an_age_are_left_out_and_counted(few, network, run_main, tmp_path, monkeypatch):
    """As record files have them."""
    data = in_folders(few, tmp_path / "people", 12)
    module = load_script("purify")
    opened = module.open_aged_pictures(data, "ms1mv3")
    opened.ages[::3] = -1
    monkeypatch.setattr(module, "open_aged_pictures", lambda *_, **__: opened)
    outcome = purify(run_main, network, data, tmp_path / "new.onnx")
    assert outcome.status == 0 and f"fitted to {NUM_PICTURES * 2 // 3} pictures" in outcome.out
    assert f"{NUM_PICTURES // 3} without an age left out" in outcome.out
    assert len(cached_features(tmp_path, 6)) == NUM_PICTURES * 2 // 3


def test_where_no_age_is_known_the_age_branch_predicts_it(few, purified, run_main, tmp_path, monkeypatch):
    """The middle that its groups have on average over both views; a file without one can't, and says what can."""
    monkeypatch.setattr(load_script("purify"), "check_enough", lambda *_: None)
    flags = ("--names", "none", "--max-images", 20)
    outcome = purify(run_main, purified.before, few, tmp_path / "new.pth", *flags)
    model, has_age_branch = load_for_embedding(purified.before)
    if not has_age_branch:
        in_one_sentence(outcome, "has no age branch; give --ages")
        return
    assert outcome.status == 0 and f"ages by the age branch of {purified.before}" in outcome.out, outcome
    rows = np.sort(np.random.default_rng(0).permutation(NUM_PICTURES)[:20])
    images = (images_of(few, NUM_PICTURES)[rows].float() - 127.5) / 127.5
    with torch.inference_mode():
        views = [model.age_logits(model.age_features(one)).softmax(dim=1) for one in (images, images.flip(-1))]
    years = (sum(views) / 2).numpy() @ AGE_GROUP_MIDDLES
    facts = facts_of(tmp_path / "new.json")
    assert facts["years"] == pytest.approx({"min": years.min(), "median": np.median(years), "max": years.max()}, 1e-4)
    assert facts["num_pictures"] == 20


# -------------------------------------------------------------------------------------------------- stopped and shared


def test_what_is_stopped_goes_on_where_it_was(few, network, run_main, tmp_path, monkeypatch):
    """Piece by piece; finished features are not computed again, and a larger sample holds the smaller one."""
    monkeypatch.setattr(feature_module, "PICTURES_A_PIECE", 16)
    embedded, features_of_model = [], OnnxNetwork.identity_features

    def count(stop_at):
        def features(self, images):
            if len(embedded) == stop_at:
                raise KeyboardInterrupt
            embedded.append(len(images) // 2)
            return features_of_model(self, images)

        embedded.clear()
        monkeypatch.setattr(OnnxNetwork, "identity_features", features)

    run = ("--batch-size", 5)
    count(stop_at=7)  # one when it is opened, four batches of the first piece, two of the second
    stopped = purify(run_main, network, few, tmp_path / "new.onnx", "--max-images", 32, *run)
    assert stopped.status == 130 and len(list((tmp_path / "cache").iterdir())) == 1
    count(stop_at=None)
    resumed = purify(run_main, network, few, tmp_path / "new.onnx", "--max-images", 32, *run)
    assert resumed.status == 0 and "features of 16 of 32 pictures are in" in resumed.out
    assert sum(embedded[1:5]) == 16 and embedded[5:] == [4, 1, 4]  # the last three check it
    count(stop_at=None)
    larger = purify(run_main, network, few, tmp_path / "all.onnx", "--max-images", 48, *run)
    assert larger.status == 0 and "features of 32 of 48 pictures are in" in larger.out
    content = (tmp_path / "new.onnx").read_bytes()
    alone = purify(run_main, network, few, tmp_path / "new.onnx", "--max-images", 32, "--force", *run)
    assert alone.status == 0 and (tmp_path / "new.onnx").read_bytes() == content


def as_one_of_several(piece: int, flags: list[str]) -> None:
    import sys

    feature_module.PICTURES_A_PIECE = piece
    sys.argv = ["purify.py", *flags]
    module = load_script("purify")
    run_script(lambda: module.purify(parse_config(module.PurifyConfig)))


def test_two_processes_share_the_pictures(few, network, run_main, tmp_path):
    """They fit what one process fits, and one of them writes."""
    assert purify(run_main, network, few, tmp_path / "one.onnx").status == 0
    flags = ["--weights", str(network), "--data", str(few), "-o", str(tmp_path / "two.onnx"), *SMALL, "--knots", "8",
             "16", "30", "50", "80", "--cache-folder", str(tmp_path / "shared"), "--batch-size", "4"]  # fmt: skip
    ended = in_processes(2, as_one_of_several, 25, flags)
    assert ended.statuses == [0, 0] and ended.out.count("written:") == 1, ended
    one, two = (facts_of(tmp_path / f"{name}.onnx.json") for name in ("one", "two"))
    assert {key: pytest.approx(value, abs=1e-4) if isinstance(value, float) else value
            for key, value in one.items()} == two  # fmt: skip


def test_names_without_an_age_are_left_out_where_the_pattern_is_given(few, network, run_main, tmp_path):
    data = shutil.copytree(few, tmp_path / "pictures")
    first = min(data.iterdir())
    first.rename(data / "holiday.jpg")
    outcome = purify(run_main, network, data, tmp_path / "new.onnx", "--names", "ms1mv3")
    assert outcome.status == 0
    assert f"fitted to {NUM_PICTURES - 1} pictures" in outcome.out and "1 without an age left out" in outcome.out


# ------------------------------------------------------------------------------------------------------------ mistakes


def of_age(folder: Path, change) -> None:
    for k, path in enumerate(sorted(folder.iterdir())):
        path.rename(folder / f"{5_000_000 + k}_age_{change(k)}.jpg")


def keep(count: int):
    return lambda folder: [path.unlink() for path in sorted(folder.iterdir())[count:]]


MISTAKES = {
    "too few pictures": (keep(5), "there are 5 pictures whose age is known in", ()),
    "too small a sample": (lambda folder: None, "a sample of 5 pictures is smaller than the 6", ("--max-images", 5)),
    "one age": (lambda folder: of_age(folder, lambda k: 30), "are of the age 30 by the file names (ms1mv3)", ()),
    "one age to the basis": (lambda folder: of_age(folder, lambda k: 80 + k % 9), "are all the same to the", ()),
    "no ages": (lambda folder: of_age(folder, lambda k: "old"), "has no age branch; give --ages with a table", ()),
    "names of another kind": (lambda folder: None, "has no age in its name: rename it", ("--names", "fgnet")),
    "no picture": (keep(0), "holds no images", ()),
}


@pytest.mark.parametrize("what", MISTAKES)
def test_a_mistake_in_the_pictures_is_one_sentence_before_or_after_the_work(what, few, network, run_main, tmp_path):
    change, words, flags = MISTAKES[what]
    data = shutil.copytree(few, tmp_path / "pictures")
    change(data)
    in_one_sentence(purify(run_main, network, data, tmp_path / "new.onnx", *flags), words)
    assert not list(tmp_path.glob("new*"))


def test_names_that_several_patterns_fit_are_asked_about(few, network, run_main, tmp_path, monkeypatch):
    """UTKFace's 25_0_2_2017.jpg has the race where MS1MV3 has the age."""
    import meta

    first = meta.FilenamePattern("first", r"_|\.", 0, "25_0_2_x.jpg")
    patterns = {"ms1mv3": meta.FILENAME_PATTERNS["ms1mv3"], "first": first}
    monkeypatch.setattr("evaluation.erasure.pictures.FILENAME_PATTERNS", patterns)
    data = shutil.copytree(few, tmp_path / "pictures")
    for k, path in enumerate(sorted(data.iterdir())):
        path.rename(data / f"{k}_0_2_{k}.jpg")
    in_one_sentence(purify(run_main, network, data, tmp_path / "new.onnx"), "give --names ms1mv3 or --names first")


@pytest.mark.parametrize(("changes", "words"), [({"scale": np.nan}, "hold NaN or infinity"),
                                                ({"scale": 0.0}, "that are all zero")])  # fmt: skip
def test_a_mistake_in_the_model_is_one_sentence(changes, words, few, run_main, tmp_path):
    weights = save_network(tmp_path / "old.onnx", **changes)
    in_one_sentence(purify(run_main, weights, few, tmp_path / "new.onnx"), words)
    assert not (tmp_path / "new.onnx").exists()
