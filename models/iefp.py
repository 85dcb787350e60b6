"""IEFP: identity branch, age branch, and the estimator of the mutual information between their features.

The state_dict is the published file format: backbone_id.*, backbone_ae.*, margin_fc.weight, clubmi.*, age_estimator.*
Source: Xie et al., TIFS 2022, figure 2.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from meta import EMBEDDING_SIZE, NUM_AGE_GROUPS, UserError
from models.age_heads import ExpectedAgeHead
from models.club import ESTIMATORS
from models.disentangle.base import Critic
from models.disentangle.registry import critic_class
from models.iresnet import IResNet
from models.margin import MARGINS

AGE_PREFIXES = ("backbone_ae.", "age_estimator.", "year_head.")  # of the names of its weights


class IEFP(nn.Module):
    """The whole model. `purification` is a scale or a variant's name; the age branch takes the same unless given.

    `margin_value` None takes the head's own default; the combined margin has three values. `num_identities` None leaves
    out the margin head, which comparing faces doesn't need; with `own_identities` it holds only these, and other
    processes hold the rest. `year_head` adds a second age head, for years, `critic` one of CRITICS (CLUB is part of
    every model, others are added); neither is published.

    Raises:
        UserError: for an unknown backbone, purification, margin, estimator or critic, or fewer than one identity.
    """

    def __init__(
        self,
        backbone: str = "iresnet50",
        purification: int | str = 1,
        num_identities: int | None = 93431,
        margin: str = "cosface",
        margin_scale: float = 64.0,
        margin_value: float | tuple[float, float, float] | None = 0.35,
        *,
        age_backbone: str | None = None,
        age_purification: int | str | None = None,
        estimator: str = "sampled",
        year_head: bool = False,
        critic: str | None = None,
        own_identities: range | None = None,
    ):
        super().__init__()
        if margin not in MARGINS:
            raise UserError(f"margin {margin!r} is unknown: give one of {', '.join(MARGINS)}.")
        if estimator not in ESTIMATORS:
            raise UserError(f"estimator {estimator!r} is unknown: give one of {', '.join(ESTIMATORS)}.")
        kind = None if critic is None else critic_class(critic)
        if num_identities is not None and num_identities < 1:
            raise UserError(f"num_identities {num_identities} is out of range: give at least 1.")
        self.backbone_id = IResNet(backbone, purification)
        self.backbone_ae = IResNet(
            backbone if age_backbone is None else age_backbone,
            purification if age_purification is None else age_purification,
        )
        self.margin_fc = (
            MARGINS[margin](num_identities, margin_scale, margin_value, own=own_identities) if num_identities else None
        )
        self.clubmi = ESTIMATORS[estimator]()
        self.age_estimator = nn.Linear(EMBEDDING_SIZE, NUM_AGE_GROUPS)
        self.year_head = ExpectedAgeHead() if year_head else None
        self.age_branch_is_frozen = False
        self.apply(_initialise)
        # Last, so that everything else starts from the same random weights whatever the method.
        self.critic = None if kind is None or kind.attribute != "critic" else kind()

    def identity_features(self, images: Tensor) -> Tensor:
        """images (N, 3, 112, 112) in [-1, 1] -> (N, 512) before L2 normalisation."""
        return self.backbone_id(images)

    def age_features(self, images: Tensor) -> Tensor:
        """images (N, 3, 112, 112) in [-1, 1] -> (N, 512) before L2 normalisation."""
        return self.backbone_ae(images)

    def age_logits(self, age_features: Tensor) -> Tensor:
        """(N, 512) -> (N, 8), one logit an age group."""
        return self.age_estimator(age_features)

    def critic_of(self, method: str) -> Critic | None:
        """The critic of a method of --disentangle, None for "none"."""
        kind = critic_class(method)
        return None if kind is None else getattr(self, kind.attribute)

    def freeze_age_branch(self) -> "IEFP":
        """Permanently excludes the age branch from gradients and keeps it in eval mode, also after `.train()`."""
        self.age_branch_is_frozen = True
        for module in self.age_branch:
            module.requires_grad_(False)
        return self.train(self.training)

    def drop_age_branch(self) -> None:
        """Removes the age branch: `backbone_ae` and its heads become None, and no file gets their weights.

        They are initialised first all the same, so that the rest starts from the same random weights either way.
        """
        self.backbone_ae = self.age_estimator = self.year_head = None

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As torch's, of the result of `with_own_age_branch`."""
        return super().load_state_dict(self.with_own_age_branch(state_dict), strict, assign)

    def with_own_age_branch(self, state_dict: Mapping[str, Any]) -> Mapping[str, Any]:
        """`state_dict` with the frozen age branch of this model, if one of the two has none.

        With methods that need no age features it depends on a file that may appear or disappear between runs.
        """
        if not self.age_branch_is_frozen:
            return state_dict
        of_age = {key: value for key, value in self.state_dict().items() if key.startswith(AGE_PREFIXES)}
        others = {key: value for key, value in state_dict.items() if not key.startswith(AGE_PREFIXES)}
        return state_dict if of_age and len(others) < len(state_dict) else others | of_age

    @property
    def age_branch(self) -> list[nn.Module]:
        """Its encoder and its heads; empty after `drop_age_branch`."""
        return [module for module in (self.backbone_ae, self.age_estimator, self.year_head) if module is not None]

    def train(self, mode: bool = True) -> "IEFP":
        super().train(mode)
        if self.age_branch_is_frozen:
            for module in self.age_branch:
                module.eval()
        return self


def _initialise(module: nn.Module) -> None:
    """Published initial weights; BatchNorm keeps 1 and 0, the margin head initialises itself."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    elif isinstance(module, nn.Linear):
        nn.init.normal_(module.weight, 0, 0.01)
        nn.init.zeros_(module.bias)
