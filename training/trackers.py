"""--wandb: what TensorBoard shows, at Weights & Biases too. The package is optional."""

import uuid
from pathlib import Path
from typing import Any

from meta import UserError
from utils.files import write_text

RUN_ID_FILE = "wandb_id.txt"


def import_wandb() -> Any:
    """The package; raises UserError where it is not installed."""
    try:
        import wandb
    except ImportError:
        raise UserError("--wandb needs the package of Weights & Biases: pip install wandb.") from None
    return wandb


class Tracker:
    """One run at Weights & Biases, which goes on under the id that the run folder keeps.

    Values carry the training step as `step`: their own count can't go back to a checkpoint.

    Raises:
        UserError: the package is missing, or the service can't be reached or does not know who is asking.
    """

    def __init__(self, project: str, folder: Path, config: dict[str, Any]):
        wandb = import_wandb()
        path = folder / RUN_ID_FILE
        if not path.exists():
            write_text(path, uuid.uuid4().hex[:12] + "\n")
        run_id = path.read_text(encoding="utf-8").strip()
        try:
            self.run = wandb.init(
                project=project, id=run_id, resume="allow", name=folder.name, dir=str(folder), config=config
            )
        except wandb.errors.Error as error:
            raise UserError(f"--wandb {project} can't be begun ({str(error).splitlines()[0]}): log in by "
                            f"`wandb login`, or set WANDB_MODE=offline.") from None  # fmt: skip
        self.run.define_metric("step")
        self.run.define_metric("*", step_metric="step")

    def log(self, values: dict[str, float], step: int) -> None:
        self.run.log({"step": step} | values)

    def close(self) -> None:
        self.run.finish()
