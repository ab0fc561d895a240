"""Train sam-mini on one GPU: the loss of `train.py`, with samples made on the device in large batches.

    python training/train_gpu.py --packs photos.npz scenes.npz --out RUN --from src/saqsam/models/sam_mini \\
        --minutes 8 --decay --small 0.3 --frames 0.5

A run is a folder as for `train.py`, with the state in small files (`state_files.py`). Started again, it resumes.
`sizes.csv` holds the held-back IoU by object size at the end of the call. Steps on 128 px windows alternate with steps
on whole 256 px frames. For tests, everything also runs with `--device cpu`.
"""

from __future__ import annotations

import argparse
import csv
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import SamModel

import forward
from device_pictures import DevicePictures, interpolate
from device_samples import DeviceSampler
from evaluation import Score, held_back_scores, iou_by_size, mean_iou
from packs import Pack
from samples import SampleSpec
from state_files import save_split
from train import HERE, WEIGHTS, Run, batch_loss, run_parser, share, update

FRAME = 256
LOG_EVERY = 50
"""Steps between rows of `log.csv`; only then does the host wait for the device."""


class DeviceRun(Run):
    """A training run on a GPU, whose state is written in small files."""

    def save(self) -> None:
        """Write the state."""
        save_split(self.state(), self.folder)

    @torch.no_grad()
    def update_average(self) -> None:
        """Update the moving average of all weights in a few kernels."""
        rate = 1 - min(0.999, (1 + self.step) / (20 + self.step))
        parameters = dict(self.model.named_parameters())
        torch._foreach_lerp_(list(self.average.values()), [parameters[name] for name in self.average], rate)


@dataclass
class Network:
    """Forward functions of `forward.py`, compiled or eager."""

    encode: Callable[..., Tensor] = forward.encode
    decode: Callable[..., tuple[Tensor, Tensor]] = forward.decode

    @classmethod
    def compiled(cls) -> Network:
        """Compile encoder and decoder for each shape. Positions are data, so the windows' offsets do not recompile."""
        encode_at = torch.compile(forward.encode_at, dynamic=False)

        def encode(model: SamModel, pixels: Tensor, top: int, left: int) -> Tensor:
            positions = forward.window_positions(model, pixels, top, left)
            return encode_at(model, pixels, positions.contiguous())

        return cls(encode, torch.compile(forward.decode, dynamic=False))


def is_frame_step(step: int, share: float) -> bool:
    """Return whether a step trains on whole frames; a share of all steps does, evenly spread."""
    return int((step + 1) * share) > int(step * share)


def is_corrected_step(step: int, share: float) -> bool:
    """Return whether a step has a second round, with a click in the error region."""
    return step % 100 < share * 100


def compile_network(run: Run, samplers: dict[bool, DeviceSampler], correct: float) -> Network:
    """Compile the network and the sampling, and try every kind of step once; keep all eager if that fails."""
    start = time.monotonic()
    all_pictures = [sampler.pictures for sampler in samplers.values()]
    try:
        network = Network.compiled()
        compiled = torch.compile(interpolate, dynamic=True)
        for pictures in all_pictures:
            pictures.interpolate_with(compiled)
        for sampler in samplers.values():
            for corrected in (False, True) if correct > 0 else (False,):
                loss, _ = batch_loss(run, sampler.batch(0), corrected, network.encode, network.decode)
                loss.backward()
    except Exception as error:  # compilers fail in many ways, and training does not depend on them
        print(f"torch.compile failed, training without: {type(error).__name__}: {error}", flush=True)
        network = Network()
        for pictures in all_pictures:
            pictures.interpolate_with(interpolate)
    run.optimizer.zero_grad(set_to_none=True)
    print(f"compiled in {time.monotonic() - start:.0f} s", flush=True)
    return network


def seconds_per_batch(sampler: DeviceSampler, batches: int = 3) -> float:
    """Return the time that a sampler takes for a batch, after a first one that initializes libraries."""
    start = 0.0
    for number in range(batches + 1):
        sampler.batch(number)
        if sampler.device.type == "cuda":
            torch.cuda.synchronize()
        if number == 0:
            start = time.monotonic()
    return (time.monotonic() - start) / batches


def check_finite(losses: list[Tensor]) -> Tensor:
    """Return losses and IoUs of steps as float [steps, 2]; the host waits for the device.

    Raises:
        RuntimeError: A loss is not finite. The state that was saved last precedes it.
    """
    values = torch.stack(losses) if losses else torch.zeros(0, 2)
    if not values.isfinite().all():
        raise RuntimeError("the loss is not finite; resume from the last saved state with a lower --lr")
    return values


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = run_parser(__doc__, batch=128, evaluate_every=4, save_every=2, small=0.3)
    parser.add_argument(
        "--held-back",
        type=Path,
        nargs="+",
        help="packs with the held-back pictures, by default those of --packs",
    )
    parser.add_argument("--frames", type=share, default=0.5, help="share of steps on whole frames")
    parser.add_argument("--frame-batch", type=int, default=64, help="frames in a batch")
    parser.add_argument("--compile", action="store_true", help="compile the network and the sampling")
    return parser.parse_args(arguments)


def make_samplers(args: argparse.Namespace, pictures: DevicePictures) -> dict[bool, DeviceSampler]:
    """Return the samplers of windows (False) and of whole frames (True) that the options ask for."""
    samplers = {}
    if args.frames < 1:
        spec = SampleSpec(args.window, FRAME, args.prompts, WEIGHTS, small=args.small)
        samplers[False] = DeviceSampler(pictures, spec, args.batch, seed=args.window)
    if args.frames > 0:
        spec = SampleSpec(FRAME, FRAME, args.prompts, WEIGHTS, whole=0.5, small=args.small)
        samplers[True] = DeviceSampler(pictures, spec, args.frame_batch, seed=FRAME)
    return samplers


def evaluate(run: Run, packs: list[Pack], window: int) -> list[Score]:
    """Score the averaged weights on the held-back pictures, log the means, and return the scores."""
    scores = held_back_scores(run.averaged_model(), packs)
    row = run.position() | {"window": window}
    run.log("curve.csv", row | {name: round(iou, 4) for name, iou in mean_iou(scores).items()})
    print(row, mean_iou(scores), flush=True)
    return scores


def write_sizes(scores: list[Score], path: Path) -> None:
    """Write the mean IoU by object size as CSV; nothing without scores."""
    if not scores:
        return
    rows = iou_by_size(scores)
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    """Train until the time is up."""
    args = parse_arguments()
    device = torch.device(args.device)
    torch.backends.cudnn.benchmark = True  # few shapes, each thousands of times
    held_back = json.loads((HERE / "held_back.json").read_text())
    start = time.monotonic()
    pictures = DevicePictures([Pack(path, held_back) for path in args.packs], device, FRAME)
    evaluated = [Pack(path, held_back, use_held_back=True) for path in args.held_back or args.packs]
    print(
        f"{len(pictures.size)} pictures, {len(pictures.side)} masks in {time.monotonic() - start:.0f} s",
        flush=True,
    )
    run = DeviceRun(args.out, device, args.lr)
    if args.weights is not None and run.step == 0:
        run.start_from(args.weights, HERE / "log" / "curve.csv")
    window = args.window if args.frames < 1 else FRAME
    samplers = make_samplers(args, pictures)
    network = compile_network(run, samplers, args.correct) if args.compile else Network()
    for sampler in samplers.values():
        milliseconds = 1000 * seconds_per_batch(sampler)
        print(f"{sampler.size} samples of {sampler.spec.window} px take {milliseconds:.1f} ms", flush=True)

    if args.evaluate_every:
        evaluate(run, evaluated, window)
    first_step, first_samples = run.step, run.samples
    before, budget = run.seconds, args.minutes * 60
    start = last_save = last_evaluation = time.monotonic()
    paused = 0.0  # evaluation does not count as training time
    losses: list[Tensor] = []
    while (spent := time.monotonic() - start - paused) < budget:
        factor = min(1.0, (run.step - first_step + 1) / args.warmup)
        if args.decay:
            factor *= 1 - spent / budget
        for group in run.optimizer.param_groups:
            group["lr"] = args.lr * factor
        sampler = samplers[is_frame_step(run.step, args.frames)]
        corrected = is_corrected_step(run.step, args.correct)
        loss, iou = batch_loss(run, sampler.batch(run.step), corrected, network.encode, network.decode)
        update(run, loss, clip=1.0)
        losses.append(torch.stack([loss.detach() / (2 if corrected else 1), iou]))
        run.step += 1
        run.samples += sampler.size
        run.update_average()
        run.seconds = before + time.monotonic() - start - paused
        if run.step % LOG_EVERY == 0:
            mean_loss, mean = check_finite(losses).mean(0).tolist()
            losses.clear()
            row = run.position() | {"window": window, "lr": f"{args.lr * factor:.2e}"}
            row |= {"loss": round(mean_loss, 4), "iou": round(mean, 4)}
            run.log("log.csv", row)
            rate = (run.samples - first_samples) / (run.seconds - before)
            print(row | {"samples_per_second": round(rate)}, flush=True)
        now = time.monotonic()
        if now - last_save > args.save_every * 60:
            check_finite(losses)
            run.save()
            last_save = now
        if args.evaluate_every and now - last_evaluation > args.evaluate_every * 60:
            evaluate(run, evaluated, window)
            last_evaluation = time.monotonic()
            paused += last_evaluation - now
    check_finite(losses)
    run.save()
    if args.evaluate_every:
        write_sizes(evaluate(run, evaluated, window), args.out / "sizes.csv")


if __name__ == "__main__":
    main()
