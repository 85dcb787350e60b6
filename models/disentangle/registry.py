"""The methods of --disentangle: IEFP's own critic, every critic in this folder, and none.

A new method is a new file here with a class under `@register_critic`.
"""

import importlib
import pkgutil

import models.club  # noqa: F401  (IEFP's own critic, the default, stands first)
import models.disentangle
from meta import UserError
from models.disentangle.base import CRITICS, Critic

NO_CRITIC = "none"

for _module in pkgutil.iter_modules(models.disentangle.__path__):
    if _module.name != "registry":
        importlib.import_module(f"models.disentangle.{_module.name}")


def critic_class(method: str) -> type[Critic] | None:
    """The class of a method's critic, None for "none". Raises: UserError for an unknown method."""
    if method == NO_CRITIC:
        return None
    if method not in CRITICS:
        raise UserError(f"critic {method!r} is unknown: give one of {', '.join(CRITICS)}.")
    return CRITICS[method]


def method_summaries() -> dict[str, str]:
    """Every choice of --disentangle and what it does, in a few words."""
    return {name: critic.summary for name, critic in CRITICS.items()} | {NO_CRITIC: "nothing"}
