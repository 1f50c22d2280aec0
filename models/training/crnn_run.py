"""A run of the CRNN with all the files that the published one leaves. In: clips, who is tested. Out: a folder, which training resumes from.

========================================================= ======================================================================
file                                                      holds
========================================================= ======================================================================
``CRNN_epoch_training_losses.npy``, ``…_accuracy.npy``    of every batch, ``(epochs, batches)``
``CRNN_epoch_test_loss.npy``, ``…_accuracy.npy``          ``(epochs,)``
``fig_Gingerbread_ResNetCRNN.png``                        those four
``save_model/{cnn_encoder,rnn_decoder,optimizer}_epochn`` ``.pth``, after every epoch n, from 1
``3_classes.pkl``                                         names of the classes
``Ginger_bread.pkl``                                      of the epoch that is asked for: ``filename, y, y_pred``
``clips.csv``, ``clips.parquet``                          of that epoch: clip, side, class, prediction, probabilities
``scores.json``, ``report/``                              of that epoch: scores of the clips that were not learned from, as a page
========================================================= ======================================================================

The source tests each epoch on the clips that it reports; so does this, and says of the best epoch that it was chosen by them.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from kymo.models.reports.report import report_files, write_report
from kymo.models.scores import HeldOut
from kymo.models.training.fit_torch import predict_torch, reproducible
from kymo.models.training.learning import batches
from kymo.models.training.record import RunRecord
from kymo.models.zoo import FitOptions, Samples
from kymo.models.zoo.crnn import Crnn
from kymo.streams.errors import TrainingError
from kymo.streams.files import write_whole

CURVES = ("training_losses", "training_accuracy", "test_loss", "test_accuracy")
PARTS = ("cnn_encoder", "rnn_decoder", "optimizer")


@dataclass(frozen=True, slots=True, eq=False)
class ClipSet:
    """Clips, what they are, and which of them test."""

    samples: Samples
    names: Sequence[str]  # one a clip
    subjects: Sequence[str]
    labels: Sequence[str]
    test: NDArray[np.bool_]  # one a clip

    def side(self, test: bool, windows: Any) -> Samples:
        """Those that test, or those that are learned from."""
        return Samples(windows[self.test == test], self.samples.classes[self.test == test])


def random_split(count: int, share: float = 0.2, seed: int = 42) -> NDArray[np.bool_]:
    """Which clips test: a share of them (rounded up) at random, whatever person, piece and class they are of."""
    test = np.zeros(count, np.bool_)
    test[np.random.default_rng(seed).permutation(count)[: int(np.ceil(share * count))]] = True
    return test


class CrnnRun:
    """One run, in a folder; one that is there already goes on behind its last whole epoch."""

    def __init__(self, model: Crnn, clips: ClipSet, folder: Path, seed: int = 42) -> None:
        self.model, self.net, self.clips, self.folder, self.seed = model, model.model, clips, folder, seed
        self.curves: dict[str, list[Any]] = {name: [] for name in CURVES}
        cached = self.net.fixed  # what a frozen backbone sees never changes
        self.windows = model.features(clips.samples.windows) if cached else clips.samples.windows
        self.net.takes_features = cached
        if cached:
            model.scale(clips.side(False, self.windows).windows)
        learned = [parameter for parameter in self.net.parameters() if parameter.requires_grad]
        p = model.parameters
        self.optimiser = torch.optim.AdamW(learned, p["learning_rate"], weight_decay=p["weight_decay"])
        self._resume()

    def train(self, epochs: int = 25, on_epoch: Callable[[dict[str, float]], None] = lambda _: None) -> CrnnRun:
        """Learn so many epochs in all."""
        with reproducible(self.seed):
            while len(self.curves["test_loss"]) < epochs:
                self._epoch(len(self.curves["test_loss"]))
                self._save()
                on_epoch({name: float(np.mean(values[-1])) for name, values in self.curves.items()})
        return self

    def _epoch(self, epoch: int) -> None:
        random, p = np.random.default_rng([self.seed, epoch]), self.model.parameters
        torch.manual_seed(int(random.integers(2**31)))
        losses, rights, side = list[float](), list[float](), self.clips.side(False, self.windows)
        self.net.train()
        for windows, numbers in batches(side, p["batch_size"], FitOptions(), random):
            truths = torch.from_numpy(side.classes[numbers])
            self.optimiser.zero_grad()
            out = self.net(torch.from_numpy(windows))
            loss = nn.functional.cross_entropy(out, truths)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimiser.step()
            losses.append(loss.item())
            rights.append((out.argmax(1) == truths).double().mean().item())
        test = self.clips.side(True, self.windows)
        out, truths = torch.from_numpy(predict_torch(self.net, test.windows)), torch.from_numpy(test.classes)
        right = (out.argmax(1) == truths).double().mean().item()
        numbers_of = (losses, rights, nn.functional.cross_entropy(out, truths).item(), right)
        for name, values in zip(CURVES, numbers_of, strict=True):
            self.curves[name].append(values)

    def _file(self, part: str, epoch: int) -> Path:
        return self.folder / "save_model" / f"{part}_epoch{epoch}.pth"

    def _save(self) -> None:
        epoch = len(self.curves["test_loss"])
        (self.folder / "save_model").mkdir(parents=True, exist_ok=True)
        for part, module in zip(PARTS, (self.net.encoder, self.net.decoder, self.optimiser), strict=True):
            torch.save(module.state_dict(), self._file(part, epoch))
        for name, values in self.curves.items():
            np.save(self.folder / f"CRNN_epoch_{name}.npy", np.array(values))
        (self.folder / "3_classes.pkl").write_bytes(pickle.dumps(list(self.clips.labels)))

    def _load(self, epoch: int) -> None:
        try:
            for part, module in zip(PARTS, (self.net.encoder, self.net.decoder, self.optimiser), strict=True):
                module.load_state_dict(torch.load(self._file(part, epoch), weights_only=True))
        except (OSError, RuntimeError, ValueError, KeyError) as error:
            why = str(error).splitlines()[0][:200]
            raise TrainingError(f"{self.folder}: epoch {epoch} is not there, or of another network ({why})") from None

    def _resume(self) -> None:
        files = {name: self.folder / f"CRNN_epoch_{name}.npy" for name in CURVES}
        if not all(file.is_file() for file in files.values()):
            return
        curves = {name: np.load(file).tolist() for name, file in files.items()}
        # The curves of an epoch are written behind its weights; a kill between two of them leaves the shortest.
        epochs = min(map(len, curves.values()))
        self._load(epochs)
        self.curves = {name: values[:epochs] for name, values in curves.items()}

    @property
    def best(self) -> int:
        """The epoch with the best test accuracy, from 1: chosen by the clips that test, as the source does."""
        return int(np.argmax(self.curves["test_accuracy"])) + 1

    def predictions(self, epoch: int) -> NDArray[np.float64]:
        """Probabilities of all clips after an epoch, ``(n, labels)``."""
        self._load(epoch)
        out: Any = predict_torch(self.net, self.windows).astype(np.float64)
        powers = np.exp(out - out.max(1, keepdims=True))
        self._load(len(self.curves["test_loss"]))
        return np.asarray(powers / powers.sum(1, keepdims=True))

    def write(self, epoch: int) -> dict[str, Any]:
        """Write what was said of each clip after an epoch, and the curves; the scores of the clips that test."""
        import pandas as pd

        said, clips = self.predictions(epoch), self.clips
        truth = clips.samples.classes
        table: dict[str, Any] = {"clip": list(clips.names), "subject": list(clips.subjects)}
        table["side"] = ["test" if test else "train" for test in clips.test]
        table |= {"class": [clips.labels[i] for i in truth], "predicted": [clips.labels[i] for i in said.argmax(1)]}
        table |= {label: said[:, i].tolist() for i, label in enumerate(clips.labels)}
        frame = pd.DataFrame(table)
        frame.to_csv(self.folder / "clips.csv", index=False)
        frame.to_parquet(self.folder / "clips.parquet")
        pd.DataFrame({"filename": clips.names, "y": truth, "y_pred": said.argmax(1)}).to_pickle(
            self.folder / "Ginger_bread.pkl"
        )
        at, labels = np.flatnonzero(clips.test), list(clips.labels)
        names = {"sessions": [clips.names[i] for i in at], "subjects": [clips.subjects[i] for i in at]}
        held = HeldOut(labels, truth[at], said[at], **names, start_index=np.zeros(len(at), np.int64))
        scores = held.scores()
        write_whole(self.folder / "scores.json", (json.dumps({"epoch": epoch, **scores}, indent=1) + "\n").encode())
        write_report(self.folder / "report", report_files(self._record(epoch, held, scores)))
        self._figure()
        return scores

    def _record(self, epoch: int, held: HeldOut, scores: dict[str, Any]) -> RunRecord:
        """What the page of an epoch tells."""
        clips, history = self.clips, list[dict[str, float]]()
        for i, values in enumerate(zip(*self.curves.values(), strict=True), 1):
            names = ("loss", "accuracy", "validation_loss", "validation_accuracy")
            history.append({"epoch": i, **{name: float(np.mean(v)) for name, v in zip(names, values, strict=True)}})
        split: dict[str, Any] = {"kind": "clip", "seed": self.seed}
        for side, test in (("training", False), ("validation", True)):
            own = clips.samples.classes[clips.test == test].tolist()
            split[side] = {"windows": len(own), "labels": {name: own.count(i) for i, name in enumerate(clips.labels)}}
        choice = f"Epoch {epoch} of {len(history)}, told by the clips that test."
        if epoch == self.best:
            choice = f"{choice[:-1]}, by which it is the best, so that their scores are better than those of new clips."
        record = RunRecord("CRNN", architecture="crnn", parameters=self.model.parameters, history=history, split=split)
        record.scores, record.held_out, record.choice = scores, held, choice
        return record

    def _figure(self) -> None:
        from matplotlib.figure import Figure

        figure = Figure((10, 4), layout="constrained")
        axes = figure.subplots(1, 2)
        for axis, kind, names in zip(axes, ("loss", "accuracy"), (CURVES[::2], CURVES[1::2]), strict=True):
            for name in names:
                values = [float(np.mean(value)) for value in self.curves[name]]
                axis.plot(range(1, len(values) + 1), values, label=name.partition("_")[0])
            axis.set(xlabel="epoch", ylabel=kind)
            axis.legend()
        figure.savefig(self.folder / "fig_Gingerbread_ResNetCRNN.png", dpi=120)
