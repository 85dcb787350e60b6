"""Weights of AdaFace, CVLface, face.evoLVe and MTLFace give what their own networks give; others are named.

The networks here are small ones in the layouts of those projects: names and order of layers, written anew.
"""

import io
import re
import zipfile

import pytest
import torch
from refusals import refused
from scripts import SLIM
from torch import nn
from torch.nn import functional as F

from data.transforms import to_network_input
from evaluation.embeddings.networks import open_network
from evaluation.erasure.sources import features_of
from models.erased_weights import erased_tensors
from models.erasure import ErasureFitter
from models.export import Embedder, example_images
from models.iresnet import BACKBONES
from models.weights import load_for_embedding, model_fingerprint, read_weight_file
from utils.distributed import DistInfo

PROCESS = DistInfo(0, 1, torch.device("cpu"))
WIDTH, BLOCKS = BACKBONES[SLIM].width, BACKBONES[SLIM].blocks


class Block(nn.Module):
    def __init__(self, before: int, planes: int, stride: int):
        super().__init__()
        self.shortcut_layer = nn.MaxPool2d(1, stride) if before == planes else nn.Sequential(
            nn.Conv2d(before, planes, 1, stride, bias=False), nn.BatchNorm2d(planes)
        )  # fmt: skip
        self.res_layer = nn.Sequential(
            nn.BatchNorm2d(before), nn.Conv2d(before, planes, 3, 1, 1, bias=False), nn.BatchNorm2d(planes),
            nn.PReLU(planes), nn.Conv2d(planes, planes, 3, stride, 1, bias=False), nn.BatchNorm2d(planes),
        )  # fmt: skip

    def forward(self, x):
        return self.shortcut_layer(x) + self.res_layer(x)


class IR(nn.Module):
    """In one `body`, as AdaFace has it, or in block1 to block4 before an attention, as MTLFace has it."""

    def __init__(self, has_scale: bool, attention: nn.Module | None = None):
        super().__init__()
        self.input_layer = nn.Sequential(nn.Conv2d(3, WIDTH, 3, 1, 1, bias=False), nn.BatchNorm2d(WIDTH),
                                         nn.PReLU(WIDTH))  # fmt: skip
        before, layers = WIDTH, []
        for k, count in enumerate(BLOCKS):
            planes = WIDTH * 2**k
            layers.append(nn.Sequential(*(Block(before if i == 0 else planes, planes, 2 if i == 0 else 1)
                                          for i in range(count))))  # fmt: skip
            before = planes
        if attention is None:
            self.body = nn.Sequential(*(block for layer in layers for block in layer))
        else:
            self.block1, self.block2, self.block3, self.block4 = layers
            self.fsm = attention
        self.output_layer = nn.Sequential(
            nn.BatchNorm2d(before), nn.Dropout(), nn.Flatten(), nn.Linear(before * 49, 512),
            nn.BatchNorm1d(512, affine=has_scale),
        )  # fmt: skip

    def forward(self, x):
        x = self.input_layer(x)
        if hasattr(self, "body"):
            return self.output_layer(self.body(x))
        return self.output_layer(self.fsm(self.block4(self.block3(self.block2(self.block1(x))))))


class Attention(nn.Module):
    """MTLFace's, by torch's own adaptive pooling; `is_joined` is the version of its Python package."""

    def __init__(self, channels: int, is_joined: bool):
        super().__init__()
        self.is_joined = is_joined
        self.spatial = nn.Sequential(nn.Conv2d(2, 1, 7, padding=3, bias=False), nn.BatchNorm2d(1), nn.Sigmoid())
        pooled = channels * 14 * (2 if is_joined else 1)
        self.channel = nn.Sequential(nn.Conv2d(pooled, pooled // 16, 1, bias=False), nn.ReLU(),
                                     nn.Conv2d(pooled // 16, channels, 1, bias=False), nn.BatchNorm2d(channels),
                                     nn.Sigmoid())  # fmt: skip

    def forward(self, x):
        mean, most = (torch.cat([pool(x, side).flatten(1) for side in (1, 2, 3)], dim=1)
                      for pool in (F.adaptive_avg_pool2d, F.adaptive_max_pool2d))  # fmt: skip
        pooled = torch.cat([mean, most], dim=1) if self.is_joined else mean + most
        places = torch.cat([x.max(1, keepdim=True)[0], x.mean(1, keepdim=True)], dim=1)
        scale = 0.5 * (self.channel(pooled[..., None, None]) + self.spatial(places))
        of_age = x * scale
        return of_age if self.is_joined else x - of_age  # the package calls the scaled part the identity


def lively(model: nn.Module) -> nn.Module:
    torch.manual_seed(7)
    for layer in model.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            layer.running_mean.normal_(0, 0.2)
            layer.running_var.uniform_(0.5, 2)
            if layer.affine:
                layer.weight.data.uniform_(0.5, 1.5)
                layer.bias.data.normal_(0, 0.2)
    return model.eval()


def named(model: nn.Module, prefix: str = "") -> dict:
    return {prefix + key: value for key, value in model.state_dict().items()}


CHANNELS, EXTRA = WIDTH * 8, {"head.kernel": torch.ones(2)}
CASES = {  # name -> network, what torch.save gets, what it is called
    "AdaFace, of Lightning": (lambda: IR(False), lambda m: {"state_dict": named(m, "model.") | EXTRA, "epoch": 3},
                              "AdaFace's layout, which takes BGR"),
    "AdaFace, taken out": (lambda: IR(False), lambda m: named(m) | EXTRA,
                           "AdaFace's layout, which takes BGR"),
    "CVLface": (lambda: IR(False), lambda m: named(m, "net."), "AdaFace's layout, which takes BGR"),
    "face.evoLVe": (lambda: IR(True), named, "face.evoLVe's layout, which takes RGB"),
    "MTLFace": (lambda: IR(True, Attention(CHANNELS, False)), lambda m: named(m, "module."),
                "MTLFace's layout, which takes RGB"),
    "MTLFace's package": (lambda: IR(True, Attention(CHANNELS, True)),
                          lambda m: named(m, "encoder.") | {"age_estimator.weight": torch.ones(7, 101),
                                                            "encoder.latlayer1.weight": torch.ones(2)},
                          "MTLFace's layout, which takes RGB"),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@torch.inference_mode()
def test_weights_of_others_give_what_their_own_networks_give(case, tmp_path):
    build, content, layout = CASES[case]
    model, path, images = lively(build()), tmp_path / "theirs.pth", example_images(3, torch.uint8)
    torch.save(content(model), path)
    pixels = to_network_input(images)
    expected = model(pixels.flip(1) if "BGR" in layout else pixels)
    loaded, has_age_branch = load_for_embedding(path)
    assert not has_age_branch and loaded.backbone_id.layout == layout and loaded.backbone_id.backbone == SLIM
    torch.testing.assert_close(loaded.identity_features(pixels), expected, rtol=1e-5, atol=1e-5)
    network = open_network(path, PROCESS)
    assert network.remarks[0] == f"{path}: {SLIM} in {layout}" and network.described["layout"] == layout
    # Exported and purified they stay what they are.
    embedder = Embedder(loaded)
    torch.testing.assert_close(embedder.folded()(images), embedder(images), rtol=1e-4, atol=1e-5)
    fitter = ErasureFitter(512)
    fitter.add(torch.randn(600, 512).numpy(), torch.linspace(0, 80, 600).numpy())
    erasure = fitter.solve()
    torch.save(erased_tensors(read_weight_file(path), erasure), tmp_path / "erased.pth")
    erased, _ = load_for_embedding(tmp_path / "erased.pth")
    assert erased.backbone_id.layout == ""  # it takes RGB and has IResNet's names now
    wanted = torch.from_numpy(erasure(features_of(loaded, images))).float()
    torch.testing.assert_close(torch.from_numpy(features_of(erased, images)), wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "text"),
    [("theirs.json", '{"color_space": "RGB"}'), ("theirs.yaml", "color_space: 'RGB'"),
     ("config.json", '{"conf": {"color_space": "RGB"}}')],
)  # fmt: skip
@torch.inference_mode()
def test_a_file_beside_says_which_colours_are_taken(name, text, tmp_path):
    """It changes what is computed, so what was kept of the same weights without it is of another model."""
    model, path = lively(IR(False)), tmp_path / "theirs.pth"
    torch.save(named(model, "net."), path)
    before, _ = load_for_embedding(path)
    (tmp_path / name).write_text(text)
    after, _ = load_for_embedding(path)
    pixels = to_network_input(example_images(2, torch.uint8))
    torch.testing.assert_close(after.identity_features(pixels), model(pixels), rtol=1e-5, atol=1e-5)
    assert after.backbone_id.layout.endswith("RGB") and model_fingerprint("x", before) != model_fingerprint("x", after)


def test_objects_of_lightning_beside_the_weights_are_left_out_and_others_refused(tmp_path):
    """A checkpoint mentions classes that aren't installed here; their names are replaced, and nothing of them runs."""
    path, other = tmp_path / "adaface.ckpt", tmp_path / "evil.ckpt"
    for place, module in ((path, "pytorch_lightning.callbacks"), (other, "os.lightning_callbacks_")):
        torch.save({"state_dict": named(IR(False), "model."), "callbacks": {slice: 1}}, place)
        place.write_bytes(repacked(place, module))
    assert load_for_embedding(path)[0].backbone_id.layout.startswith("AdaFace")
    refused(load_for_embedding, other, match="it asks for os.lightning_callbacks_.ModelCheckpoint")


def repacked(path, module: str) -> bytes:
    """The archive with a class of `module` in the place of slice."""
    packed = io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(packed, "w") as new:
        for entry in old.infolist():
            content = old.read(entry)
            if entry.filename.endswith("data.pkl"):
                content = re.sub(
                    rb"c(__builtin__|builtins)\nslice\n", b"c%s\nModelCheckpoint\n" % module.encode(), content
                )
            new.writestr(entry.filename, content)
    return packed.getvalue()


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        (("model.body.0.res_layer.se_block.fc1.weight",), "an IR-SE network"),
        (("block1.0.res_layer.6.fc1.weight",), "an IR-SE network"),
        (("body.0.res_layer.7.weight",), "an IR network of 152 or 200 layers"),
        (("net.patch_embed.proj.weight", "net.pos_embed"), "a vision transformer"),
        (("conv2d_1a.conv.weight",), "FaceNet's InceptionResnetV1"),
    ],
)
def test_a_network_that_is_known_and_not_built_is_named_with_the_way_to_onnx(keys, name, tmp_path):
    torch.save({key: torch.ones(2) for key in (*keys, "input_layer.0.weight")}, tmp_path / "x.pth")
    message = refused(load_for_embedding, tmp_path / "x.pth", match=f"x.pth holds {name}")
    assert "torch.onnx.export(" in message and "--weights model.onnx" in message


def test_a_network_of_another_depth_or_with_parts_missing_is_refused(tmp_path):
    model = IR(False)
    short = {key: value for key, value in named(model).items() if not key.startswith("body.4.")}
    torch.save(short, tmp_path / "short.pth")
    refused(load_for_embedding, tmp_path / "short.pth", match="which is none of")
    torn = {key: value for key, value in named(model).items() if key != "body.1.res_layer.4.weight"}
    torch.save(torn, tmp_path / "torn.pth")
    refused(load_for_embedding, tmp_path / "torn.pth", match="1 keys missing")
