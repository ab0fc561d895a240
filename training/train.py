"""Train sam-mini or sam2-mini: resumable, stops by the clock, the same script on a CPU and on an accelerator.

    python training/train.py --packs photos.npz scenes.npz --out RUN --minutes 120 --window 128 --batch 8
    python training/train.py --packs ... --out RUN --minutes 60 --window 256 --batch 3 --decay   # to the end
    python training/train.py --packs ... --out NEW --from src/saqsam/models/sam_mini --minutes 120   # from weights

A run is a folder: `state.pt` (weights, their moving average, optimizer, counters; written whole every few minutes),
`log.csv` (losses), `curve.csv` (mean IoU on the held-back pictures). Run it again with the same `--out` to resume. The
learning rate is constant after its warm-up; `--decay` lets it fall to zero over the time of this call, so that one
long run can be ended whenever its time is up.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Subset
from transformers import SamModel

import forward
import sam2_mini
from evaluation import held_back_iou
from losses import Truth, corrected_prompts, total_loss
from packs import Pack
from samples import SampleSet, SampleSpec
from state_files import load_state
from trainees import SAM_MINI, TRAINEES, Trainee

WEIGHTS = {"objects_train": 0.45, "coco_train": 0.18, "nuclei_train": 0.16, "scenes": 0.21}
BALANCED_STEPS = 1500
HERE = Path(__file__).parent


class Run:
    """A training run in its folder.

    Attributes:
        teacher: sam-mini, whose embedding a sam2-mini is drawn towards, or None.
    """

    def __init__(
        self, folder: Path, device: torch.device, lr: float, trainee: Trainee = SAM_MINI, teacher: Any = None
    ) -> None:
        torch.manual_seed(0)
        self.folder, self.device, self.trainee = folder, device, trainee
        self.teacher = None if teacher is None else teacher.to(device).eval()
        self.model = trainee.build()
        if trainee is SAM_MINI:
            forward.initialize(self.model)
        else:
            sam2_mini.initialize(self.model, teacher)
        trainee.prepare(self.model).to(device).train()
        decayed = [p for p in self.model.parameters() if p.dim() > 1]
        others = [p for p in self.model.parameters() if p.dim() <= 1]
        groups: list[dict[str, Any]] = [
            {"params": decayed, "weight_decay": 0.05}, {"params": others, "weight_decay": 0.0}
        ]  # fmt: skip
        fused = True if device.type == "cuda" else None
        self.optimizer = torch.optim.AdamW(groups, lr=lr, betas=(0.9, 0.98), fused=fused)
        self.average = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        self.step = self.samples = 0
        self.seconds = 0.0
        folder.mkdir(parents=True, exist_ok=True)
        state = load_state(folder, device)
        if state is not None:
            self.model.load_state_dict(state["model"])
            self.optimizer.load_state_dict(self.optimizer.state_dict() | state["optimizer"])
            self.average = state["average"]
            self.step, self.samples, self.seconds = state["step"], state["samples"], state["seconds"]

    def start_from(self, weights: Path, curve: Path | None) -> None:
        """Start from exported weights, at the position where their learning curve ends, if there is one."""
        exported = type(self.model).from_pretrained(weights, dtype=torch.float32)
        self.model.load_state_dict(exported.state_dict())
        self.average = {n: p.detach().clone() for n, p in self.model.named_parameters()}
        if curve is None:
            return
        with curve.open(newline="") as file:
            last = list(csv.DictReader(file))[-1]
        self.step, self.samples = int(last["step"]), int(last["samples"])
        self.seconds = float(last["hours"]) * 3600

    def state(self) -> dict[str, Any]:
        """Return the state that a run resumes from."""
        return {
            "model": self.model.state_dict(),
            "average": self.average,
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "samples": self.samples,
            "seconds": self.seconds,
        }

    def save(self) -> None:
        """Write the state atomically."""
        partial = self.folder / "state.partial"
        torch.save(self.state(), partial)
        partial.replace(self.folder / "state.pt")

    @torch.no_grad()
    def update_average(self) -> None:
        """Update the exponential moving average of the weights, which is shorter early in the run."""
        rate = 1 - min(0.999, (1 + self.step) / (20 + self.step))
        for name, parameter in self.model.named_parameters():
            self.average[name].lerp_(parameter, rate)

    def averaged_model(self) -> Any:
        """Return a plain model of transformers with the averaged weights, in eval mode."""
        model = self.trainee.build()
        model.load_state_dict({**self.model.state_dict(), **self.average})
        return model.to(self.device).eval()

    def position(self) -> dict[str, object]:
        """Position of the run in its schedule."""
        return {"step": self.step, "samples": self.samples, "hours": round(self.seconds / 3600, 4)}

    def log(self, name: str, row: dict[str, object]) -> None:
        """Append a row to a CSV of the run."""
        path = self.folder / name
        is_new = not path.exists()
        with path.open("a", newline="") as file:
            writer = csv.DictWriter(file, list(row))
            if is_new:
                writer.writeheader()
            writer.writerow(row)


def batch_loss(
    run: Run,
    batch: dict[str, Tensor],
    correct: bool,
    encode: Callable[..., Any] | None = None,
    decode: Callable[..., tuple[Tensor, Tensor]] | None = None,
    teacher_weight: float = 0.0,
) -> tuple[Tensor, Tensor]:
    """Return the loss of a batch on the run's device, summed over its rounds, and the mean IoU of the last round.

    `correct` adds a second round, with a click in the error region. `encode` and `decode` are the trainee's or
    compiled ones. `teacher_weight` weighs the error of the embedding. No value returns to the host.
    """
    device, model, trainee = run.device, run.model, run.trainee
    encode, decode = encode or trainee.encode, decode or trainee.decode
    top, left = window_place(run, batch)
    shift = torch.stack([torch.full((), float(at * trainee.cell), device=device) for at in (left, top)])
    target = batch["targets"].flatten(0, 1).float() / 255
    cells = target.shape[-1] / batch["pixels"].shape[-1]
    truth = Truth(
        target, batch["regions"].flatten(0, 1) * cells, batch["region_targets"].flatten(0, 1).float() / 255
    )
    coords, labels = batch["coords"] + shift, batch["labels"]
    is_point = (labels[..., 1] == -1).flatten()
    tokens = batch["pixels"].shape[-1] // trainee.cell
    # The Fourier features need float32: their arguments span several turns.
    positions = model.get_image_wide_positional_embeddings()[:, :, top : top + tokens, left : left + tokens]
    with mixed_precision(device):
        features = encode(model, batch["pixels"], top, left)
    mask_input = None
    balance = max(0.0, 1 - run.step / BALANCED_STEPS) if run.teacher is None else 0.0
    loss = torch.zeros((), device=device)
    if teacher_weight > 0:
        loss = loss + teacher_weight * embedding_loss(run, batch, features, top, left)
    for round_ in range(2 if correct else 1):
        sparse = trainee.embed_prompts(model, coords, labels)
        with mixed_precision(device):
            logits, predicted = decode(model, features, positions, sparse, mask_input)
        logits, predicted = logits.flatten(0, 1).float(), predicted.flatten(0, 1).float()
        ambiguous = is_point if round_ == 0 else torch.zeros_like(is_point)
        part, iou = total_loss(logits, predicted, truth, ambiguous, balance)
        loss = loss + part
        if correct and round_ == 0:
            kept = torch.where(
                is_point, 1 + predicted[:, 1:].argmax(1), torch.zeros_like(is_point, dtype=torch.long)
            )
            so_far = logits.detach()[torch.arange(len(kept), device=device), kept]
            local = coords - shift
            coords, labels, mask_input = corrected_prompts(so_far, target, local, labels, 1 / cells)
            coords = coords + shift
    return loss, iou


def mixed_precision(device: torch.device) -> torch.autocast:
    """Return bfloat16 autocast, without effect on processors that would emulate it."""
    supported = device.type != "cpu" or torch.ops.mkldnn._is_mkldnn_bf16_supported()
    return torch.autocast(device.type, torch.bfloat16, enabled=supported)


def window_place(run: Run, batch: dict[str, Tensor]) -> tuple[int, int]:
    """Draw the place (top, left) of a batch's windows in the frame, in cells of the embedding."""
    trainee = run.trainee
    torch.manual_seed(run.step)  # a resumed run draws what an unbroken one would
    free = (trainee.frame - batch["pixels"].shape[-1]) // trainee.cell // trainee.step
    top, left = (trainee.step * int(torch.randint(0, free + 1, ())) for _ in range(2))
    return top, left


def embedding_loss(run: Run, batch: dict[str, Tensor], features: Any, top: int, left: int) -> Tensor:
    """Return the error of the embedding to the teacher's, which sees the same window at its own resolution."""
    scale = run.trainee.frame // SAM_MINI.frame
    with torch.no_grad(), mixed_precision(run.device):
        target = forward.encode(run.teacher, F.avg_pool2d(batch["pixels"], scale), top, left)
    return sam2_mini.teacher_loss(features, target)


def update(run: Run, loss: Tensor, clip: float) -> None:
    """Take one optimizer step down the gradient of the loss."""
    run.optimizer.zero_grad(set_to_none=True)
    loss.backward()
    torch.nn.utils.clip_grad_norm_(run.model.parameters(), clip)
    run.optimizer.step()


def train_step(
    run: Run, batch: dict[str, Tensor], correct: bool, clip: float, teacher_weight: float = 0.0
) -> tuple[float, float]:
    """Take one optimizer step on a batch and return the loss and the mean IoU."""
    batch = {k: v.to(run.device, non_blocking=True) for k, v in batch.items()}
    loss, iou = batch_loss(run, batch, correct, teacher_weight=teacher_weight)
    update(run, loss, clip)
    return loss.item() / (2 if correct else 1), iou.item()


def embedding_step(run: Run, batch: dict[str, Tensor], clip: float) -> tuple[float, float]:
    """Take one optimizer step towards the teacher's embedding and return its loss; there is no IoU."""
    batch = {k: v.to(run.device, non_blocking=True) for k, v in batch.items()}
    top, left = window_place(run, batch)
    with mixed_precision(run.device):
        features = run.trainee.encode(run.model, batch["pixels"], top, left)
    loss = embedding_loss(run, batch, features, top, left)
    update(run, loss, clip)
    return loss.item(), float("nan")


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = run_parser(__doc__, batch=8, evaluate_every=20, save_every=4, small=0.0)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--model", choices=list(TRAINEES), default="sam-mini")
    parser.add_argument(
        "--teacher", type=Path, help="folder of sam-mini, from which a sam2-mini starts and learns"
    )
    parser.add_argument("--teacher-weight", type=float, default=0.0, help="weight of the embedding's error")
    parser.add_argument(
        "--embedding-only", action="store_true", help="train the encoder towards the teacher alone"
    )
    args = parser.parse_args(arguments)
    if args.model == SAM_MINI.name:
        if args.teacher is not None or args.embedding_only or args.teacher_weight > 0:
            parser.error("--teacher, --teacher-weight and --embedding-only: expected --model sam2-mini")
    elif args.teacher is None:
        parser.error(f"--model {args.model} starts and learns from a sam-mini: pass its folder as --teacher")
    return args


def run_parser(
    documentation: str, *, batch: int, evaluate_every: float, save_every: float, small: float
) -> argparse.ArgumentParser:
    """Return a parser with the options that the training loops share.

    Args:
        documentation: Docstring of the script, whose first paragraph describes it.
        batch: Default of `--batch`.
        evaluate_every: Default of `--evaluate-every`.
        save_every: Default of `--save-every`.
        small: Default of `--small`.
    """
    parser = argparse.ArgumentParser(description=documentation.split("\n\n")[0])
    parser.add_argument("--packs", type=Path, nargs="+", required=True, help="packs of one source are joined")
    parser.add_argument("--out", type=Path, required=True, help="folder of the run; resumed if it holds one")
    parser.add_argument(
        "--from",
        dest="weights",
        type=Path,
        help="folder of weights that a new run starts from; sam-mini's past log/curve.csv",
    )
    parser.add_argument(
        "--minutes", type=float, required=True, help="training time; on a GPU without loading and evaluation"
    )
    parser.add_argument(
        "--window", type=int, default=128, help="side of the training window, at most the frame"
    )
    parser.add_argument("--batch", type=int, default=batch, help="windows in a batch")
    parser.add_argument("--prompts", type=int, default=8, help="prompts a picture")
    parser.add_argument(
        "--small", type=share, default=small, help="share of samples that favor small objects"
    )
    parser.add_argument("--lr", type=float, default=1e-3)
    parser.add_argument("--warmup", type=int, default=300, help="steps")
    parser.add_argument("--decay", action="store_true", help="let the learning rate fall to 0 over this call")
    parser.add_argument(
        "--correct", type=share, default=0.15, help="share of steps with a second, corrected round"
    )
    parser.add_argument(
        "--evaluate-every",
        type=float,
        default=evaluate_every,
        help="minutes between held-back evaluations; 0 for none",
    )
    parser.add_argument("--save-every", type=float, default=save_every, help="minutes between saved states")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    return parser


def share(text: str) -> float:
    """Return a share from 0 to 1.

    Raises:
        argparse.ArgumentTypeError: It is none.
    """
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"expected a number from 0 to 1, got {text!r}")
    return value


def sample_spec(trainee: Trainee, window: int, prompts: int, small: float = 0.0) -> SampleSpec:
    """Return the samples of a trainee; half of those as large as the frame show the whole picture."""
    return SampleSpec(
        window,
        trainee.frame,
        prompts,
        WEIGHTS,
        whole=0.5 if window == trainee.frame else 0.0,
        canvas=trainee.canvas,
        mask_stride=trainee.cell // 4,
        small=small,
    )


def main() -> None:
    """Train until the time is up."""
    args = parse_arguments()
    held_back = json.loads((HERE / "held_back.json").read_text())
    packs = [Pack(path, held_back) for path in args.packs]
    trainee = TRAINEES[args.model]
    teacher = None if args.teacher is None else SamModel.from_pretrained(args.teacher, dtype=torch.float32)
    run = Run(args.out, torch.device(args.device), args.lr, trainee, teacher)
    if args.weights is not None and run.step == 0:
        run.start_from(args.weights, HERE / "log" / "curve.csv" if trainee is SAM_MINI else None)
    first_step = run.step
    # The fused attention of a CPU is slow in its backward pass where sequences are short.
    torch.backends.cuda.enable_flash_sdp(args.window > 128 or args.device != "cpu")
    spec = sample_spec(trainee, args.window, args.prompts, args.small)
    samples = SampleSet(packs, spec, seed=args.window, length=2**40)
    stream = Subset(samples, range(run.samples, 2**40))
    prefetch = 4 if args.workers else None
    loader = DataLoader(stream, args.batch, num_workers=args.workers, prefetch_factor=prefetch)
    start = last_save = last_evaluation = time.monotonic()
    before, budget = run.seconds, args.minutes * 60
    losses: list[tuple[float, float]] = []

    def evaluate() -> None:
        pictures = [Pack(path, held_back, use_held_back=True) for path in args.packs]
        scores = held_back_iou(run.averaged_model(), pictures, trainee.canvas)
        row = run.position() | {"window": args.window}
        run.log("curve.csv", {**row, **{k: round(v, 4) for k, v in scores.items()}})
        print(row, scores, flush=True)

    for batch in loader:
        spent = time.monotonic() - start
        if spent > budget:
            break
        factor = min(1.0, (run.step - first_step + 1) / args.warmup)
        if args.decay:
            factor *= max(0.0, 1 - spent / budget)
        for group in run.optimizer.param_groups:
            group["lr"] = args.lr * factor
        correct = run.step % 100 < args.correct * 100
        if args.embedding_only:
            losses.append(embedding_step(run, batch, clip=1.0))
        else:
            losses.append(train_step(run, batch, correct, 1.0, args.teacher_weight))
        run.step += 1
        run.samples += args.batch
        run.seconds = before + time.monotonic() - start
        run.update_average()
        if run.step % 50 == 0:
            loss, iou = (sum(values) / len(losses) for values in zip(*losses, strict=True))
            losses.clear()
            row = run.position() | {"window": args.window, "lr": f"{args.lr * factor:.2e}"}
            row |= {"loss": round(loss, 4), "iou": round(iou, 4)}
            run.log("log.csv", row)
            print(row, flush=True)
        now = time.monotonic()
        if now - last_save > args.save_every * 60:
            run.save()
            last_save = now
        if args.evaluate_every and now - last_evaluation > args.evaluate_every * 60:
            evaluate()
            last_evaluation = time.monotonic()
    run.save()
    if args.evaluate_every:
        evaluate()


if __name__ == "__main__":
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    main()
