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
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from transformers import SamModel

import forward
from device_pictures import DevicePictures, interpolate
from device_samples import DeviceSampler
from evaluation import held_back_scores, iou_by_size, mean_iou
from samples import Pack, SampleSpec
from state_files import save_split
from train import HERE, WEIGHTS, Run, batch_loss, update

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


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--packs", type=Path, nargs="+", required=True, help="packs of one source are joined")
    parser.add_argument(
        "--held-back",
        type=Path,
        nargs="+",
        help="packs with the held-back pictures, by default those of --packs",
    )
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; resumed if it holds one")
    parser.add_argument(
        "--from",
        dest="weights",
        type=Path,
        help="folder of weights that a new run starts from, past log/curve.csv",
    )
    parser.add_argument(
        "--minutes", type=float, required=True, help="training time, without loading and evaluation"
    )
    parser.add_argument("--window", type=int, default=128, help="side of the training window")
    parser.add_argument("--batch", type=int, default=128, help="windows in a batch")
    parser.add_argument("--frames", type=float, default=0.5, help="share of steps on whole frames")
    parser.add_argument("--frame-batch", type=int, default=64, help="frames in a batch")
    parser.add_argument("--prompts", type=int, default=8, help="prompts a picture")
    parser.add_argument("--small", type=float, default=0.3, help="share of samples that favor small objects")
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--warmup", type=int, default=300, help="steps")
    parser.add_argument("--decay", action="store_true", help="let the learning rate fall to 0 over this call")
    parser.add_argument(
        "--correct", type=float, default=0.15, help="share of steps with a second, corrected round"
    )
    parser.add_argument("--compile", action="store_true", help="compile the network and the sampling")
    parser.add_argument(
        "--evaluate-every", type=float, default=4, help="minutes between held-back evaluations"
    )
    parser.add_argument("--save-every", type=float, default=2, help="minutes between saved states")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser.parse_args()


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
    samplers = {}
    window = args.window if args.frames < 1 else FRAME
    if args.frames < 1:
        spec = SampleSpec(args.window, FRAME, args.prompts, WEIGHTS)
        samplers[False] = DeviceSampler(pictures, spec, args.batch, seed=args.window, small=args.small)
    if args.frames > 0:
        spec = SampleSpec(FRAME, FRAME, args.prompts, WEIGHTS, whole=0.5)
        samplers[True] = DeviceSampler(pictures, spec, args.frame_batch, seed=FRAME, small=args.small)
    network = compile_network(run, samplers, args.correct) if args.compile else Network()
    for sampler in samplers.values():
        milliseconds = 1000 * seconds_per_batch(sampler)
        print(f"{sampler.size} samples of {sampler.spec.window} px take {milliseconds:.1f} ms", flush=True)

    def evaluate(*, by_size: bool) -> None:
        scores = held_back_scores(run.averaged_model(), evaluated)
        row = run.position() | {"window": window}
        run.log("curve.csv", row | {name: round(iou, 4) for name, iou in mean_iou(scores).items()})
        print(row, mean_iou(scores), flush=True)
        if by_size and scores:
            with (args.out / "sizes.csv").open("w", newline="") as file:
                rows = iou_by_size(scores)
                writer = csv.DictWriter(file, list(rows[0]))
                writer.writeheader()
                writer.writerows(rows)

    evaluate(by_size=False)
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
        if now - last_evaluation > args.evaluate_every * 60:
            evaluate(by_size=False)
            last_evaluation = time.monotonic()
            paused += last_evaluation - now
    check_finite(losses)
    run.save()
    evaluate(by_size=True)


if __name__ == "__main__":
    main()
