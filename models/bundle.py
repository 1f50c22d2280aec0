"""Bundles: trained models as folders. In: a folder or a name. Out: a :class:`Bundle` with verified files, or an error.

A bundle is ``model.onnx``, ``manifest.json`` and ``report/``. The manifest names every other file with its SHA-256.
The bundle's id is ``recipe@digest``, the digest of all that the manifest says but the moment of making: the same inputs
and seed give the same id.

An architecture that finds its features by itself (``takes = "raw"``, such as ``minirocket``) skips the recipe's steps. Its bundle says so
(``"takes": "raw"`` in the manifest's model section) and carries the recipe's chain cut back by :func:`raw_chain`: the same intake, the
same window grid, hence the same event ids. A bundle of such a model fits every recipe whose cut chain is its own. What differs: a window
of samples is whole once all its samples are there, one of spectrogram columns as soon as its last column is; at a recording's end, or
before a gap, there may be one window fewer. In a worker the model agent of a raw bundle reads the sensor's own topic, whether or not a
processor runs beside it.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from kymo.models.registry import ALIASES, CHAMPION, SHIPPED, Entry, Registry, open_registry
from kymo.models.registry.manifest import FORMAT, MANIFEST, MODEL, read_manifest, verify
from kymo.models.zoo import ModelHead
from kymo.processors.chain import Chain, PerWindow
from kymo.processors.intake import Intake
from kymo.processors.join import Join
from kymo.processors.registry import spec_from_json
from kymo.processors.spec import Spec
from kymo.processors.steps.maps import Mask
from kymo.processors.windows import Windows
from kymo.streams.errors import BundleError, FormatError, RecipeError
from kymo.streams.files import is_file_name
from kymo.streams.schema import Positive, Rules, SchemaError, Whole, read

if TYPE_CHECKING:
    from kymo.processors.recipe.load import Recipe

UNKNOWN = "unknown"
LAYOUTS = ("channels_first", "channels_last")


@dataclass(frozen=True, slots=True)
class BundleHead(ModelHead):
    temperature: Positive = 1.0  # as the bundle's own; of no meaning for a number

    @property
    def kind(self) -> str:
        return "classes" if self.labels else "number"


@dataclass(frozen=True, slots=True, eq=False)
class Bundle:
    """A trained model, its files verified."""

    path: Path  # its folder
    id: str  # ``recipe@digest``
    recipe: str  # name of the recipe that it was trained by
    chain: Chain  # from raw chunks to windows, with the learned numbers; the chain to run
    # classes, in the order of the model's outputs; one alone where a recipe has none, and heads say all
    labels: Annotated[tuple[str, ...], Rules(minItems=1)]
    shape: tuple[Whole, ...]  # of one window as the model takes it
    layout: Annotated[str, Rules(enum=LAYOUTS)]  # (channels, time, …), or as windows are, (time, …, channels)
    dtype: str  # of the model's input
    # names in the ONNX graph; the output holds logits, (windows, labels), and behind them each head's columns
    input: str
    output: str
    temperature: Positive  # what logits are divided by before the softmax; 1 leaves them as they are
    batch: (
        str  # ``any``, ``padded:N`` or ``single``: how windows are put together so that no result depends on the others
    )
    manifest: dict[str, Any]  # all that it says
    heads: tuple[BundleHead, ...] = ()  # in the order of their columns
    takes: str = "chain"  # what the recipe's chain makes, or ``raw``, windows of raw samples
    state: Whole = (
        0  # numbers that a stateful model remembers of a session; 0 for one that judges each window by itself
    )

    def __post_init__(self) -> None:
        if len(set(self.labels)) < len(self.labels):
            raise SchemaError(("labels",), "labels none of which stands twice", list(self.labels))
        if len(self.labels) < 2 and not self.heads:
            raise SchemaError(("labels",), "at least two labels, or a head", list(self.labels))

    @property
    def columns(self) -> int:
        return len(self.labels) + sum(head.width for head in self.heads)

    @property
    def model_path(self) -> Path:
        return self.path / MODEL

    @property
    def lengths(self) -> dict[str, list[float]]:
        """How large samples were that it learned from, see :mod:`kymo.models.lengths`; empty where it does not say."""
        return dict(self.manifest.get("lengths", {}))

    def check(self, recipe: Recipe) -> None:
        """Refuse a recipe that this bundle was not trained for.

        Such is one whose chain differs in more than learned numbers or gives other shapes, gives a label of the bundle another name, or has
        other heads; the BundleError says which step and parameter.
        """
        if why := self._misfit(recipe):
            advice = f"train it again (`kymo train {recipe.name}`), or use the recipe that the bundle was made by"
            raise BundleError(f"bundle {self.id} {why}; {advice}")

    def _misfit(self, recipe: Recipe) -> str:
        """Why a recipe is none that this bundle was trained for; empty where it is one."""
        chain = raw_chain(recipe.chain) if self.takes == "raw" else recipe.chain
        if difference := _difference(self.chain, chain):
            return f"does not fit recipe `{recipe.name}`: {difference}"
        if self.state and not recipe.stateful:
            return f"goes on from window to window, recipe `{recipe.name}` does not say [model] stateful = true"
        raw = recipe.input_format()
        fmt = chain.output({raw.stream: raw})
        shape = input_shape((fmt.rows or 0, *fmt.shape), self.layout)
        if shape != self.shape:
            takes, makes = " x ".join(map(str, self.shape)), " x ".join(map(str, shape))
            return f"takes windows of {takes}, recipe `{recipe.name}` makes {makes}"
        ours, theirs = {head.name: head.kind for head in self.heads}, {head.name: head.kind for head in recipe.heads}
        if ours != theirs:
            has, asked = (", ".join(f"{n} ({kind})" for n, kind in heads.items()) or "none" for heads in (ours, theirs))
            return f"has the heads {has}, recipe `{recipe.name}` asks for {asked}"
        names = {"": recipe.labels.names, **{head.name: head.names for head in recipe.heads}}
        for head in (BundleHead("", self.labels), *self.heads):
            renamed = names[head.name]
            # A value without a name of its own is a class as it stands; one that has a name no longer is.
            alien = [label for label in head.labels if label in renamed and label not in renamed.values()]
            if alien:
                return f"tells label `{alien[0]}`, which recipe `{recipe.name}` calls `{renamed[alien[0]]}`"
        return ""


def check_model(recipe: Recipe) -> None:
    if recipe.model is None:
        raise RecipeError(f"recipe `{recipe.name}` has no [model], so there is nothing to classify with", recipe.path)


def raw_chain(chain: Chain) -> Chain:
    """The intake and the window of a chain, without any step; of several inputs their join, with what says which of them is missing."""
    kept: list[Spec] = [spec for spec in chain.specs if isinstance(spec, Intake | Join | Windows)]
    join, (_, behind) = kept[0], chain.cut_behind_window()
    if isinstance(join, Join) and any(isinstance(step.spec, Mask) for step in behind):
        kept.append(PerWindow(Mask().behind(join.channels, join.output({}))))
    return Chain(tuple(kept))


def input_shape(window: tuple[int, ...], layout: str) -> tuple[int, ...]:
    """Shape of a window as the model takes it, from ``(time, …, channels)``."""
    return (window[-1], *window[:-1]) if layout == "channels_first" else window


def _difference(ours: Chain, theirs: Chain) -> str:
    """First place where two chains differ, learned numbers apart, in words; empty where they do not."""
    pairs = zip_longest(*([_flat(spec.to_json(learned=False)) for spec in chain.specs] for chain in (ours, theirs)))
    for i, (a, b) in enumerate(pairs, 1):
        if a is None or b is None:
            return f"only the {'bundle' if a else 'recipe'} has step {i} `{(a or b)['step']}`"
        if a["step"] != b["step"]:
            return f"step {i} is `{a['step']}` in the bundle and `{b['step']}` in the recipe"
        for key in sorted({*a, *b}):
            if a.get(key) != b.get(key):
                values = [json.dumps(facts.get(key)) for facts in (a, b)]
                return f"step {i} `{a['step']}`, {key} is {values[0]} in the bundle and {values[1]} in the recipe"
    return ""


def _flat(spec: dict[str, Any]) -> dict[str, Any]:
    """A step's JSON; of one that is taken window by window, what it takes."""
    flat = {**_flat(spec["spec"]), "per_window": True} if "spec" in spec else dict(spec)
    for branch in flat.pop("branches", ()):  # of a join: what each of its inputs says, and the steps of each
        stream, steps = branch["stream"], [_flat(step) for step in branch["chain"]["specs"]]
        facts = {key: branch[key] for key in branch.keys() - {"step", "stream", "chain"}}
        facts |= {"[[input.steps]]": [step["step"] for step in steps[1:]]}
        facts |= {f"{step['step']} {key}": value for step in steps for key, value in step.items() if key != "step"}
        flat |= {f"{key} of input `{stream}`": value for key, value in facts.items()}
    return flat


def load_bundle(source: str | Path, home: Path | None = None) -> Bundle:
    """A bundle with all its files verified: its folder as a Path, or a name as :func:`find_bundle` takes it.

    A BundleError names the file that is not there, is damaged, or was made by a newer Kymo.
    """
    path = find_bundle(source, home) if isinstance(source, str) else source
    manifest = read_manifest(path)
    where = path / MANIFEST
    if manifest.get("format") != FORMAT:
        raise BundleError(
            f"{where}: bundle format {manifest.get('format')!r}, expected {FORMAT}; "
            f"train it again with this version of Kymo"
        )
    verify(path, manifest)
    try:
        chain = spec_from_json(manifest.get("chain", {}))
        facts = {
            "path": path,
            "manifest": manifest,
            "chain": chain if isinstance(chain, Chain) else Chain((chain,)),
            "heads": [read(BundleHead, head, strict=False) for head in manifest.get("heads", [])],
        }
        return read(Bundle, {**manifest, **manifest.get("model", {}), **facts}, strict=False)
    except FormatError as error:
        raise BundleError(
            f"{where}: its chain cannot be built: {error}; train it again with this version of Kymo"
        ) from None
    except (SchemaError, LookupError, TypeError, ValueError, AttributeError, ArithmeticError) as error:
        raise BundleError(f"{where}: not a whole manifest ({error}); train the bundle again") from None


def find_bundle(name: str, home: Path | None = None) -> Path:
    """Find a bundle's folder by a recipe's name, ``recipe@version``, ``recipe@alias``, or a path; `home` instead of ``KYMO_HOME``."""
    recipe, _, version = name.partition("@")
    if not is_file_name(recipe) or (version and not is_file_name(version)):
        if (Path(name) / MANIFEST).is_file():
            return Path(name)
        raise BundleError(
            f"{name}: no bundle, {MANIFEST} is not there; name a bundle's folder or a recipe that was trained"
        )
    registry, shipped = open_registry(home), SHIPPED / recipe
    if folder := _in_registry(registry, recipe, version):
        return folder
    plain = name.removesuffix(f"@{CHAMPION}")
    if (shipped / MANIFEST).is_file() and str(read_manifest(shipped).get("id", "")).startswith(plain):
        return shipped
    if (Path(name) / MANIFEST).is_file():
        return Path(name)
    if version and (versions := registry.versions(recipe)):
        raise BundleError(f"no bundle `{name}` in {registry.url}; the versions of `{recipe}` are {', '.join(versions)}")
    aside = f" (the folder {name} is none: {MANIFEST} is not in it)" if Path(name).is_dir() else ""
    raise BundleError(
        f"no bundle `{name}` in {registry.url} and none ships with Kymo{aside}; "
        f"train one: kymo train {recipe} --data PATH"
    )


def _in_registry(registry: Registry, recipe: str, version: str) -> Path | None:
    if not version or version in ALIASES:
        entry = registry.current(recipe, version or CHAMPION)
        digests = [entry.digest] if entry and entry.bundle else []
    else:
        digests = [digest for digest in registry.versions(recipe) if digest.startswith(version)]
    if len(digests) > 1:
        raise BundleError(f"bundle `{recipe}@{version}`: {', '.join(digests)} begin so; give more digits")
    folder = registry.folder(recipe, digests[0]) if digests else None
    if digests and folder is None:
        raise BundleError(
            f"bundle {recipe}@{digests[0]}: not whole in registry {registry.url}; promote another, or train again"
        )
    return folder


def promote(name: str | Path, alias: str = CHAMPION, *, why: str = "", home: Path | None = None) -> Entry:
    """Have an alias stand for a bundle; one from outside is taken into the registry first."""
    bundle, registry = load_bundle(name, home), open_registry(home)
    listed = {**bundle.manifest["files"], **bundle.manifest.get("attached", {})}
    registry.add(bundle.manifest, {name: (bundle.path / name).read_bytes() for name in listed})
    return registry.promote(bundle.recipe, bundle.manifest["digest"], alias, why=why)
