"""--profile: what a few steps of a run spend their time on, by torch.profiler."""

from pathlib import Path

import torch

from utils.distributed import DistInfo, print_rank0
from utils.files import write_text

STEPS_BEFORE = 5  # the first ones start workers, choose kernels and compile networks
WARM_UP_STEPS = 2  # the profiler's own start would be in the figures
MAX_ROWS = 40
MAX_NAME = 60


class Profile:
    """Records `num_steps` steps of the first process, then writes a trace and a table of operations into `folder`."""

    def __init__(self, num_steps: int, folder: Path, process: DistInfo):
        self.num_steps, self.folder, self.process = num_steps, folder, process
        self.is_written, self.recorder, self.steps_done = False, None, 0
        if not process.is_first:
            return
        has_gpu = process.device.type == "cuda"
        self.order = "self_device_time_total" if has_gpu else "self_cpu_time_total"
        activities = [torch.profiler.ProfilerActivity.CPU, *([torch.profiler.ProfilerActivity.CUDA] * has_gpu)]
        self.recorder = torch.profiler.profile(
            activities=activities,
            schedule=torch.profiler.schedule(
                skip_first=STEPS_BEFORE, wait=0, warmup=WARM_UP_STEPS, active=num_steps, repeat=1
            ),
            on_trace_ready=self._write,
        )
        self.recorder.start()

    def step(self) -> None:
        """Counts a step; stops after the last one to record."""
        if self.recorder is not None:
            self.steps_done += 1
            self.recorder.step()
            if self.is_written:
                self.close()

    def close(self) -> None:
        """Stops; prints a line where this start had too few steps."""
        if self.recorder is None:
            return
        recorder, self.recorder = self.recorder, None
        recorder.stop()
        if not self.is_written:
            print_rank0(self.process, f"no profile: --profile {self.num_steps} needs "
                        f"{STEPS_BEFORE + WARM_UP_STEPS + self.num_steps} steps, and the run ended before")  # fmt: skip

    def _write(self, recorded: torch.profiler.profile) -> None:
        trace, table = self.folder / "profile_trace.json.gz", self.folder / "profile_operations.txt"
        beside = trace.with_name("profile_trace.part.json.gz")  # torch packs what ends in .gz
        try:
            recorded.export_chrome_trace(str(beside))
            beside.replace(trace)
        finally:
            beside.unlink(missing_ok=True)
        num_recorded = self.steps_done - STEPS_BEFORE - WARM_UP_STEPS  # fewer than asked for where the run ended
        averages = recorded.key_averages()
        rows = averages.table(sort_by=self.order, row_limit=MAX_ROWS, max_name_column_width=MAX_NAME)
        write_text(table, f"{num_recorded} steps, the most expensive operations first\n{rows}\n")
        self.is_written = True
        print_rank0(self.process, f"profile of {num_recorded} steps: {table}, and {trace} for ui.perfetto.dev")
