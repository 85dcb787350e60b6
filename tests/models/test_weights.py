"""Every accepted weight file gives the features of the model that it came from; every other file is refused whole."""

import json
import pickle
import random
import zipfile
from collections import OrderedDict

import pytest
import torch
from golden_weights import fill
from scripts import TINY
from torch import nn

from meta import WEIGHT_FILES, UserError
from models.iefp import IEFP
from models.iresnet import BACKBONES, IResNet
from models.purification import PURIFICATION_VARIANTS
from models.weights import (
    Branch,
    age_file_tensors,
    check_weight_file,
    describe_branches,
    iefp_file_tensors,
    load_age_branch,
    load_estimator,
    load_for_embedding,
    load_identity_branch,
    read_weight_file,
)

NUM_IDENTITIES = 7


@pytest.fixture(scope="module")
def source():
    """A model of scale 1 with weights drawn by key, as if trained."""
    return fill(IEFP(TINY, 1, NUM_IDENTITIES)).eval()


@pytest.fixture(scope="module")
def baseline():
    """The same without purification units: what InsightFace trains."""
    return fill(IEFP(TINY, 0, None)).eval()


@pytest.fixture(scope="module")
def untouched():
    """A model that wrong files are offered to; `assert_refused` sees that it stays as it is."""
    return IEFP(TINY, 1, 3)


IDENTITY, AGE = ("backbone_id.",), ("backbone_ae.", "age_estimator.")


def assert_same(model, tensors, prefixes=("",)):
    """What the branches compute is what their tensors and purification units are."""
    for key, value in model.state_dict().items():
        if key.startswith(prefixes):
            assert torch.equal(value, tensors[key]), key


def save(path, content, **options):
    torch.save(content, path, **options)
    return path


def beginning(tensors, prefix):
    return {key: value for key, value in tensors.items() if key.startswith(prefix)}


def module_prefixed(tensors):
    return OrderedDict((f"module.{key}", value) for key, value in tensors.items())


def checkpoint(model, stage="identity"):
    """What train.py's save_checkpoint writes."""
    momentum = {"state": {0: {"momentum_buffer": torch.ones(3)}}, "param_groups": [{"lr": 0.1, "params": [0]}]}
    return {
        "format": 1,
        "step": 12,
        "config": {"stage": stage, "run": "runs/x", "learning_rate": 0.1},
        "position": {"epoch": 0, "batch": 12, "step": 12},
        "model": model.state_dict(),
        "optimisers": {stage: momentum},
        "scaler": {},
    }


def bare_backbone(model, keep=lambda key: True):
    """An InsightFace backbone.pth."""
    tensors = beginning(model.state_dict(), "backbone_id.")
    return OrderedDict((key.removeprefix("backbone_id."), value) for key, value in tensors.items() if keep(key))


def without_counters(tensors):
    return {key: value for key, value in tensors.items() if not key.endswith("num_batches_tracked")}


def hollow(tensors):
    """The same names and shapes on one stored number a tensor: large networks as small files."""
    return {key: torch.zeros(()).expand(value.shape) for key, value in tensors.items()}


def state_copy(module):
    return {key: value.clone() for key, value in module.state_dict().items()}


# --------------------------------------------------------------------------------------------- files of the whole model

WHOLE_FILES = {
    "the released IEFP file": lambda model: module_prefixed(model.state_dict()),
    "iefp.pth of train.py": iefp_file_tensors,
    "a checkpoint of train.py": checkpoint,
    "a checkpoint of two processes": lambda model: {"state_dict": module_prefixed(model.state_dict())},
    "no margin weights": lambda model: {k: v for k, v in model.state_dict().items() if not k.startswith("margin_fc")},
    "no estimator": lambda model: {k: v for k, v in model.state_dict().items() if not k.startswith("clubmi")},
    "no BatchNorm counters": lambda model: without_counters(model.state_dict()),
    "parameters, not tensors": lambda model: {k: nn.Parameter(v, False) for k, v in model.state_dict().items()},
}


@pytest.mark.parametrize(
    ("kind", "is_zip"), [*((kind, True) for kind in WHOLE_FILES), ("the released IEFP file", False)]
)
def test_a_file_of_the_whole_model_gives_both_branches_and_each_alone(source, kind, is_zip, tmp_path):
    path = save(tmp_path / "weights.pth", WHOLE_FILES[kind](source), _use_new_zipfile_serialization=is_zip)
    model, has_age = load_for_embedding(path)
    assert has_age and model.margin_fc is None and not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.backbone_ae.parameters())
    assert model.train().backbone_ae.training is False
    assert_same(model, source.state_dict(), IDENTITY + AGE)
    for load, prefixes in ((load_identity_branch, IDENTITY), (load_age_branch, AGE)):
        model = IEFP(TINY, 1, NUM_IDENTITIES)
        others = {key: value for key, value in state_copy(model).items() if not key.startswith(prefixes)}
        load(model, path)
        assert_same(model, others | beginning(source.state_dict(), prefixes))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_files_of_another_precision_load_as_float32(source, dtype, tmp_path):
    stored = {k: v.to(dtype) if v.is_floating_point() else v for k, v in source.state_dict().items()}
    loaded, _ = load_for_embedding(save(tmp_path / "short.pth", stored))
    assert {parameter.dtype for parameter in loaded.parameters()} == {torch.float32}
    rounded = {key: value.float() if value.is_floating_point() else value for key, value in stored.items()}
    assert_same(loaded, rounded, IDENTITY + AGE)


def test_written_tensors_are_plain_whatever_the_model_was(tmp_path):
    model = IEFP(TINY, 1, NUM_IDENTITIES).to(memory_format=torch.channels_last)
    for tensors in (iefp_file_tensors(model), age_file_tensors(model)):
        for key, value in tensors.items():
            assert value.device.type == "cpu" and value.is_contiguous() and not value.requires_grad, key
    assert list(iefp_file_tensors(model)) == list(model.state_dict())


# ------------------------------------------------------------------------------------------------ files of one branch

AGE_FILES = {
    "the released age file": lambda model: OrderedDict(age_file_tensors(model)),
    "with the DataParallel prefix": lambda model: module_prefixed(age_file_tensors(model)),
    "a checkpoint of --stage age": lambda model: checkpoint(model, stage="age"),
}


@pytest.mark.parametrize("kind", AGE_FILES)
def test_an_age_file_gives_the_age_branch_and_no_identity_branch(source, kind, tmp_path):
    path = save(tmp_path / "age.pth", AGE_FILES[kind](source))
    model = IEFP(TINY, 1, NUM_IDENTITIES)
    load_age_branch(model, path)
    assert_same(model, source.state_dict(), AGE)
    read = read_weight_file(path)
    assert (read.identity_branch, read.age_branch) == (None, Branch(TINY, 1))
    before = state_copy(model)
    # In a checkpoint of the age stage stands an identity branch that nobody trained: no faces are compared with it.
    for refuse in (lambda: load_identity_branch(model, path), lambda: load_for_embedding(path)):
        with pytest.raises(UserError, match=r"age\.pth holds no identity branch .*Accepted are"):
            refuse()
    assert_same(model, before)


BACKBONE_FILES = {
    "as saved": bare_backbone,
    "without BatchNorm counters": lambda model: bare_backbone(model, lambda key: not key.endswith("_tracked")),
    "with the DataParallel prefix": lambda model: module_prefixed(bare_backbone(model)),
}


@pytest.mark.parametrize("kind", BACKBONE_FILES)
def test_an_insightface_backbone_loads_as_scale_0(baseline, kind, tmp_path):
    path = save(tmp_path / "backbone.pth", BACKBONE_FILES[kind](baseline))
    model, has_age = load_for_embedding(path)
    assert not has_age and model.backbone_id.purification == 0
    other = IEFP(TINY, 0, NUM_IDENTITIES, age_purification=1)
    load_identity_branch(other, path)
    for loaded in (model, other):
        assert_same(loaded, baseline.state_dict(), IDENTITY)
    before = state_copy(other)
    with pytest.raises(UserError, match=r"backbone\.pth holds no age branch .*Accepted are"):
        load_age_branch(other, path)
    assert_same(other, before)
    with pytest.raises(UserError, match=r"holds tiny with purification 0\): 6 keys missing .*spu\.seq\.0"):
        load_identity_branch(IEFP(TINY, 1, 3), path)  # it does not pass for one with a unit


# ----------------------------------------------------------------------------------------- what a file says of itself


@pytest.mark.parametrize(
    ("backbone", "purification"), [*((name, 1) for name in BACKBONES), *((TINY, scale) for scale in (0, 2, 8))]
)
def test_backbone_and_scale_are_read_off_the_keys(backbone, purification, tmp_path):
    with torch.device("meta"):
        encoder = IResNet(backbone, purification)
    path = save(tmp_path / "weights.pth", hollow(encoder.state_dict()))
    assert read_weight_file(path).identity_branch == Branch(backbone, purification)


def test_each_branch_has_its_own_backbone_and_purification(tmp_path):
    source = IEFP(TINY, 2, NUM_IDENTITIES, age_backbone="iresnet18_quarter", age_purification=0)
    path = save(tmp_path / "iefp.pth", iefp_file_tensors(source))
    read = read_weight_file(path)
    assert (read.identity_branch, read.age_branch) == (Branch(TINY, 2), Branch("iresnet18_quarter", 0))
    assert_same(load_for_embedding(path)[0], source.state_dict(), IDENTITY + AGE)


@pytest.mark.parametrize("kind", ["a JSON file beside it", "branches in a checkpoint"])
@pytest.mark.parametrize("variant", PURIFICATION_VARIANTS)
def test_a_variant_with_another_sign_is_named_beside_the_keys(variant, kind, tmp_path):
    with torch.device("meta"):
        source = IEFP(TINY, variant, NUM_IDENTITIES, age_purification="relu_linear_bn")
    path, tensors = tmp_path / "iefp.pth", hollow(source.state_dict())
    if kind == "branches in a checkpoint":
        save(path, {"config": {"stage": "identity"}, "model": tensors, "branches": describe_branches(source)})
    else:
        save(path, tensors)
        path.with_suffix(".json").write_text(json.dumps(describe_branches(source)))
    loaded, _ = load_for_embedding(path)
    assert (loaded.backbone_id.purification, loaded.backbone_ae.purification) == (variant, "relu_linear_bn")


def test_without_a_description_a_variant_is_the_published_reading_of_its_keys(tmp_path):
    for variant, read in (("linear_relu_bn", 1), ("x_plus_relu_linear_bn", "x_minus_relu_linear_bn")):
        with torch.device("meta"):
            encoder = IResNet(TINY, variant)
        path = save(tmp_path / "bare.pth", hollow(encoder.state_dict()))
        assert read_weight_file(path).identity_branch == Branch(TINY, read)


@pytest.mark.parametrize("text", ["[]", "3", "{}", '{"identity_branch": 3}', '{"age_branch": {}}', '{"lr": [0.1]}'])
def test_a_json_file_about_something_else_says_nothing(text, baseline, tmp_path):
    path = save(tmp_path / "backbone.pth", bare_backbone(baseline))
    path.with_suffix(".json").write_text(text)
    assert read_weight_file(path).identity_branch == Branch(TINY, 0)


@pytest.mark.parametrize(
    "text",
    ["", "{", "\x00\x01", *(f'{{"identity_branch": {{"purification": {p}}}}}' for p in ("7", "true", "[1]", '"x"'))],
)
def test_a_description_that_can_not_be_right_is_an_error_that_names_it(text, baseline, tmp_path):
    path = save(tmp_path / "backbone.pth", bare_backbone(baseline))
    beside = path.with_suffix(".json")
    beside.write_text(text)
    with pytest.raises(UserError) as raised:
        load_for_embedding(path)
    for words in (str(beside), path.name, "restore or remove"):
        assert words in str(raised.value)


# ---------------------------------------------------------------------------------------------------------- wrong files


class Harmful:
    """Pickled, it writes a file as soon as a careless reader opens it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def torchvision_resnet18():
    tensors = {"conv1.weight": torch.zeros(64, 3, 7, 7), "bn1.weight": torch.zeros(64), "bn1.bias": torch.zeros(64)}
    for layer in (1, 2, 3, 4):
        for block in (0, 1):
            for conv in (1, 2):
                tensors[f"layer{layer}.{block}.conv{conv}.weight"] = torch.zeros(())
                tensors[f"layer{layer}.{block}.bn{conv}.weight"] = torch.zeros(64)
    return tensors | {"fc.weight": torch.zeros(1000, 512), "fc.bias": torch.zeros(1000)}


def changed(tensors, without=(), **more):
    return {key: value for key, value in tensors.items() if key not in without} | more


# name -> (content from the IEFP tensors of the source, what the message says); bytes are written as they are.
WRONG_FILES = {
    "empty": (lambda t: b"", "is empty: get it again"),
    "text": (lambda t: b"conv1.weight = 3\n", "is a text that begins 'conv1.weight = 3', no weight file: give the"),
    "a page of a download site": (lambda t: b"<!DOCTYPE html>\n<html></html>\n",
                                  "is a web page, no weight file: open its address in a browser"),
    "noise": (lambda t: random.Random(0).randbytes(1000), "can't be read as a weight file"),
    "pickle of nothing": (lambda t: b"\x80\x02.", "can't be read as a weight file"),  # pops from an empty list
    "a list": (lambda t: list(t.values()), "holds a list, not a table of named tensors"),
    "a tensor": (lambda t: torch.zeros(3), "holds a Tensor, not a table of named tensors"),
    "numbered tensors": (lambda t: dict(enumerate(t.values())), "not a table of named tensors"),
    "an empty table": (lambda t: {}, "holds no table of named tensors but nothing"),
    "an optimiser's state": (lambda t: {"state": {}, "param_groups": []}, "tensors but state, param_groups"),
    "tensors and others": (lambda t: t | {"epoch": 3}, "holds no table of named tensors but epoch"),
    "torchvision": (lambda t: torchvision_resnet18(),
                    r"holds iresnet18 .*keys missing .*keys of another shape .*conv1\.weight \(64, 3, 7, 7\)"),
    "another network": (lambda t: {f"features.{n}.weight": torch.zeros(3) for n in range(9)},
                        r"keys of another network \(features\.0\.weight, features\.1\.weight, .*, \.\.\.\)"),
    "another backbone": (lambda t: {"backbone.stem.weight": torch.zeros(3), "neck.weight": torch.zeros(3)},
                         r"\(0, 0, 0, 0\) blocks .*its keys: stem\.weight"),
    "a key missing": (lambda t: changed(t, without=["backbone_id.fc.bias"]),
                      r"with purification 1\): 1 keys missing \(backbone_id\.fc\.bias\)"),
    "many keys missing": (lambda t: {k: v for k, v in t.items() if "running" not in k},
                          r"46 keys missing \(backbone_id\.bn1\.running_mean, .*, \.\.\.\)"),
    "a key too many": (lambda t: t | {"backbone_id.attention.weight": torch.zeros(3)},
                       r"1 keys unexpected \(backbone_id\.attention\.weight\)"),
    "another shape": (lambda t: t | {"backbone_id.fc.weight": torch.zeros(512, 128)},
                      r"1 keys of another shape \(backbone_id\.fc\.weight \(512, 128\) for \(512, 392\)\)"),
    "another width": (lambda t: t | {"backbone_id.conv1.weight": torch.zeros(24, 3, 3, 3)},
                      "a stem of 24 planes, which is none of iresnet18, "),
    "a number for a stem": (lambda t: t | {"backbone_id.conv1.weight": torch.zeros(())}, r"its keys: .*conv1\.weight"),
}  # fmt: skip


def write(path, content):
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    return path


def assert_refused(path, message, model, loads=(load_identity_branch,)):
    """Each way to load the file is a user's mistake, reported in one line, and leaves the model as it was."""
    before = state_copy(model)
    ways = [lambda load=load: load(model, path) for load in loads]
    if load_identity_branch in loads:
        ways.append(lambda: load_for_embedding(path))
    for way in ways:
        with pytest.raises(UserError, match=message) as raised:
            way()
        text = str(raised.value)
        assert "\n" not in text and str(path) in text and text.endswith(".")
        assert "Accepted are: the released IEFP file" in text
        assert_same(model, before)


@pytest.mark.parametrize("case", WRONG_FILES)
def test_a_wrong_file_is_refused_whole(source, case, untouched, tmp_path):
    make, message = WRONG_FILES[case]
    path = write(tmp_path / "wrong.pth", make(hollow(iefp_file_tensors(source))))
    assert_refused(path, message, untouched)


@pytest.mark.parametrize("share", [0.001, 0.5, 0.999])
def test_a_file_cut_short_is_refused(source, share, untouched, tmp_path):
    path = save(tmp_path / "cut.pth", iefp_file_tensors(source))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    words = "has no end, the download stopped early: get it again"
    assert_refused(path, words, untouched, (load_identity_branch, load_age_branch))


AGE_FAULTS = {
    "no age estimator": (lambda t: beginning(t, "backbone."), r"2 keys missing \(age_estimator\.weight, age_est"),
    "another number of age groups": (lambda t: t | {"age_estimator.weight": torch.zeros(5, 512)},
                                     r"1 keys of another shape \(age_estimator\.weight \(5, 512\) for \(8, 512\)\)"),
    "a key too many": (lambda t: t | {"age_estimator.0.bias": torch.zeros(3)}, r"1 keys unexpected \(age_estimator\.0"),
    "a key missing": (lambda t: changed(t, without=["backbone.bn1.weight"]), r"\(backbone_ae\.bn1\.weight\)"),
}  # fmt: skip


@pytest.mark.parametrize("case", AGE_FAULTS)
def test_an_age_branch_is_loaded_whole_or_not_at_all(source, case, untouched, tmp_path):
    change, message = AGE_FAULTS[case]
    path = save(tmp_path / "age.pth", change(hollow(age_file_tensors(source))))
    assert_refused(path, message, untouched, (load_age_branch,))


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("how", ["torch.save", "pickle", "in a checkpoint"])
def test_nothing_in_a_file_is_executed(source, how, untouched, tmp_path):
    written, path = tmp_path / "written", tmp_path / "harmful.pth"
    content = {"backbone_id.conv1.weight": Harmful(written)}
    if how == "pickle":
        path.write_bytes(pickle.dumps(content))
        pickle.loads(path.read_bytes())["backbone_id.conv1.weight"].close()
        assert written.exists()  # a careless reader would do harm
        written.unlink()
    else:
        save(path, content if how == "torch.save" else {"model": iefp_file_tensors(source), "config": content})
    assert_refused(path, "holding more than tensors", untouched, (load_identity_branch, load_age_branch))
    assert not written.exists()


def test_a_pickled_model_is_refused_without_advice_to_trust_it(source, tmp_path):
    path = save(tmp_path / "model.pth", source)
    with pytest.raises(UserError, match=r"it asks for models\.iefp\.IEFP\)") as raised:
        load_for_embedding(path)
    assert "weights_only" not in str(raised.value)


@pytest.mark.parametrize("name", ["iefp.zip", "iefp.pth", "iefp.onnx"])
def test_an_archive_around_weights_is_named(tmp_path, name):
    with zipfile.ZipFile(tmp_path / name, "w") as file:
        file.writestr("runs/iefp.pth", b"PK")
    with pytest.raises(
        UserError, match=rf"{name} is a ZIP archive, no weight file: unpack it and give the weight file"
    ):
        check_weight_file(tmp_path / name, or_onnx=True)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("zipped", [True, False])
def test_damage_anywhere_in_a_file_never_shows_as_a_mistake_of_ours(zipped, tmp_path):
    path = tmp_path / "small.pth"
    tensors = {"backbone_id.conv1.weight": torch.ones(2, 3), "age_estimator.bias": torch.ones(8)}
    torch.save(tensors, path, _use_new_zipfile_serialization=zipped)
    whole, randomness = path.read_bytes(), random.Random(int(zipped))
    for _ in range(400):
        damaged = bytearray(whole)
        for _ in range(3):
            damaged[randomness.randrange(len(damaged))] = randomness.randrange(256)
        path.write_bytes(damaged)
        with pytest.raises(UserError):  # unharmed, it would still hold no known backbone
            read_weight_file(path)


@pytest.mark.parametrize("known", WEIGHT_FILES.values(), ids=WEIGHT_FILES)
def test_the_error_for_a_missing_published_file_says_where_to_get_it(known, tmp_path):
    path = tmp_path / known.path
    for load in (lambda: load_identity_branch(IEFP(TINY, 1, 3), path), lambda: load_for_embedding(path)):
        with pytest.raises(UserError, match="does not exist") as raised:
            load()
        for words in (str(path), known.source, f"belongs at {known.path}"):
            assert words in str(raised.value)


def test_the_error_for_another_missing_file_says_what_is_accepted(untouched, tmp_path):
    assert_refused(tmp_path / "none.pth", "weight file .* does not exist", untouched)
    assert_refused(tmp_path, "is a folder, no weight file", untouched)


# --------------------------------------------------------------------------------------------------- the estimator


def test_the_estimator_of_a_file_is_loaded_and_its_absence_is_reported(tmp_path):
    torch.manual_seed(4)
    trained = IEFP(TINY, 1, 6)
    trained.clubmi(*torch.randn(2, 8, 512))  # in train mode: BatchNorm counts the batch
    tensors = iefp_file_tensors(trained)
    torch.save(tensors, tmp_path / "with.pth")
    torch.save({key: value for key, value in tensors.items() if "clubmi" not in key}, tmp_path / "without.pth")
    model = IEFP(TINY, 1, None)
    before = state_copy(model)
    assert not load_estimator(model, tmp_path / "without.pth")
    assert_same(model, before)
    assert load_estimator(model, tmp_path / "with.pth") and not model.clubmi.training
    assert_same(model, tensors, ("clubmi.",))
