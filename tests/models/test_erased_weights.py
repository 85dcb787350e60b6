"""Weights with an erasure give the erased features of those without, in every form a file has; no other file is one."""

import numpy as np
import pytest
import torch
from golden_weights import fill
from scripts import SLIM

from evaluation.embeddings.erasures import describe_erasure, erasure_in_onnx
from meta import UserError
from models.erased_weights import ONNX_MARK, add_erasure_to_onnx, erased_tensors, is_erased
from models.erasure import ErasureFitter
from models.export import Embedder, example_images
from models.export_files import run_embedder
from models.iefp import IEFP
from models.weights import (
    ERASURE,
    describe_branches,
    iefp_file_tensors,
    load_for_embedding,
    load_identity_branch,
    load_what_fits,
    read_weight_file,
)

NUM_IDENTITIES = 7


def erasure_of(size: int):
    """An erasure with a mean, whose features vary more in some directions than in others."""
    draw, fitter = np.random.default_rng(0), ErasureFitter(size)
    ages = draw.uniform(0, 90, 4 * size)
    features = draw.standard_normal((4 * size, size)) * np.linspace(0.5, 2, size) + 0.3
    fitter.add(features + np.outer(ages / 30, draw.standard_normal(size)), ages)
    return fitter.solve()


@pytest.fixture(scope="module")
def erasure():
    return erasure_of(512)


FORMS = {
    "an InsightFace backbone": (0, lambda t: {k[12:]: v for k, v in t.items() if k.startswith("backbone_id.")}),
    "a file without a unit": (0, lambda t: t),
    "the published unit": (1, lambda t: {f"module.{key}": value for key, value in t.items()}),
    "another unit": ("x_plus_relu_linear_bn", lambda t: t),
}


@pytest.fixture(params=FORMS, scope="module")
def files(request, tmp_path_factory, erasure):
    """A model, its weight file, and that with the erasure."""
    purification, change = FORMS[request.param]
    tmp_path = tmp_path_factory.mktemp("files")
    model = fill(IEFP(SLIM, purification, NUM_IDENTITIES)).eval()
    before, after = tmp_path / "before.pth", tmp_path / "after.pth"
    torch.save(change(iefp_file_tensors(model)), before)
    for path in (before, after):
        path.with_suffix(".json").write_text(str(describe_branches(model)).replace("'", '"'))
    torch.save(erased_tensors(read_weight_file(before), erasure), after)
    return model, before, after


def features_of(model, images=None) -> np.ndarray:
    images = example_images(4, torch.uint8) if images is None else images
    with torch.inference_mode():
        return model.eval().identity_features((images.float() - 127.5) / 127.5).numpy()


def test_the_erased_file_gives_the_erased_features(files, erasure):
    """To 1e-5 of the largest, loaded by either way; the age branch is as it was."""
    model, before, after = files
    expected = erasure(features_of(model))
    loaded, _ = load_for_embedding(after)
    into = IEFP(SLIM, model.backbone_id.purification, None)
    load_identity_branch(into, after)
    for one in (loaded, into):
        assert np.abs(features_of(one) - expected).max() < 1e-5 * np.abs(expected).max()
    load_identity_branch(into, before)  # and back
    np.testing.assert_array_equal(features_of(into), features_of(model))


def test_only_the_erased_file_is_one_and_its_rank_is_read_from_it(files, erasure):
    _, before, after = files
    assert is_erased(read_weight_file(after)) and not is_erased(read_weight_file(before))
    assert describe_erasure(load_for_embedding(before)[0], before) is None
    assert describe_erasure(load_for_embedding(after)[0], after) == {"rank": erasure.rank}


def test_the_file_keeps_its_form_where_there_is_no_unit(files):
    """Names, shapes and types stay; CLUB, which knows other features, goes; with a unit one layer comes."""
    model, before, after = files
    old, new = (torch.load(path, weights_only=True) for path in (before, after))
    kept = {key.removeprefix("module."): value for key, value in old.items() if "clubmi." not in key}
    added = {f"{ERASURE}{name}" for name in ("weight", "bias")} if model.backbone_id.purification else set()
    assert new.keys() == kept.keys() | added
    assert all(new[key].shape == value.shape and new[key].dtype == value.dtype for key, value in kept.items())


def test_what_is_exported_holds_the_erasure(files):
    """The function that export.py writes, with BatchNorm folded."""
    _, _, after = files
    embedder = Embedder(load_for_embedding(after)[0], num_views=2)
    images = example_images(4, torch.uint8).numpy()
    plain, folded = (run_embedder(one)(images)[0] for one in (embedder, embedder.folded()))
    assert np.abs(plain - folded).max() < 1e-5
    assert len([one for one in embedder.folded().modules() if isinstance(one, torch.nn.BatchNorm2d)]) == 0


def test_training_starts_before_an_erasure_that_is_a_layer_and_says_so(files):
    model, before, after = files
    new = IEFP(SLIM, model.backbone_id.purification, NUM_IDENTITIES)
    sentence = load_what_fits(new, after, ("backbone_id.",))
    has_layer = model.backbone_id.purification != 0
    assert ("training starts before the erasure of age" in sentence) == has_layer
    start = before if has_layer else after
    np.testing.assert_array_equal(features_of(new), features_of(load_for_embedding(start)[0]))


@pytest.mark.parametrize("keys", [{"weight": (512, 512)}, {"weight": (512, 9), "bias": (512,)}])
def test_half_an_erasure_is_refused_whole(tmp_path, keys):
    model = IEFP(SLIM, 1, None)
    tensors = iefp_file_tensors(model) | {ERASURE + name: torch.zeros(shape) for name, shape in keys.items()}
    torch.save(tensors, tmp_path / "half.pth")
    with pytest.raises(UserError, match="does not fit the identity branch"):
        load_identity_branch(model, tmp_path / "half.pth")
    assert model.backbone_id.erasure is None


# ---------------------------------------------------------------------------------------------------------- ONNX


def test_an_onnx_model_gets_a_gemm_at_its_end(tmp_path):
    """Its output keeps its name and is the erased one, also where the model itself uses it again."""
    onnx, ort = pytest.importorskip("onnx"), pytest.importorskip("onnxruntime")
    helper, number = onnx.helper, onnx.TensorProto.FLOAT
    nodes = [helper.make_node("Relu", ["x"], ["features"]), helper.make_node("Neg", ["features"], ["other"])]
    values = {name: helper.make_tensor_value_info(name, number, ["n", 6]) for name in ("x", "features", "other")}
    graph = helper.make_graph(nodes, "two outputs", [values["x"]], [values["features"], values["other"]])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    erasure = erasure_of(6)
    assert erasure_in_onnx(model) is None
    add_erasure_to_onnx(model, erasure, "features", {ONNX_MARK: "{}"})
    onnx.checker.check_model(model, full_check=True)
    assert erasure_in_onnx(model) == {}
    x = np.random.default_rng(1).standard_normal((5, 6)).astype(np.float32)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    features, other = session.run(["features", "other"], {"x": x})
    np.testing.assert_allclose(features, erasure(np.maximum(x, 0)), atol=1e-6)
    np.testing.assert_array_equal(other, -np.maximum(x, 0))
    model.opset_import[0].version = 6
    with pytest.raises(UserError, match="opset 6, at least 7"):
        add_erasure_to_onnx(model, erasure, "features", {ONNX_MARK: "{}"})
