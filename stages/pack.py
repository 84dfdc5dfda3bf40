"""Pack: the pruned checkpoint without its zeros, and its speed beside the same weights with them.

Of a variant that lost structures it is the speed beside the dense model.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from stages._project import Method, Project, Root, Sparsity, main, say
from stages._samples import packed_continued
from zpruner.artifacts.costs import Packed, PackedSpeed, SpeedBesideDense
from zpruner.artifacts.work import Work
from zpruner.bench import Bench, Plan, bench, row_count
from zpruner.bench.measure import CONTROL, PACKED, TORCH
from zpruner.checkpoint import Checkpoint, write_manifest
from zpruner.checkpoint.card import packed_card
from zpruner.errors import ArtifactError
from zpruner.packed.pack import Savings, pack
from zpruner.packed.variant import known_of_variant
from zpruner.patterns import StructuredPattern
from zpruner.runtime.progress import counter


def run(method: Method, sparsity: Sparsity, root: Root = Path()) -> None:
    """Write data/packed/METHOD/SPARSITY, from which `zpruner unpack` makes the very files of the pruned checkpoint.

    Where packed.variants leaves the variant out, or where it has neither zeros nor integers, only a manifest is
    written.

    Args:
        method: a label under `methods` in params.yaml.
        sparsity: a label under `sparsities`.
        root: the project folder.
    """
    project = Project.open(root)
    params = project.params
    pruned = project.open_pruned(method, sparsity)
    packs, times = params.packs(method, sparsity), params.times(method, sparsity)
    if (packs or times) and not pruned.tensor_bytes:
        raise ArtifactError(
            str(pruned.folder),
            "no weights: the variant was made in memory",
            "a checkpoint on disk, as packed.variants lists it",
            f"Add '{method}/{sparsity}' to evaluation.checkpoints in params.yaml.",
        )
    facts = {key: value for key, value in pruned.manifest.items() if key not in ("model", "hash", "files", "converted")}
    facts["role"] = "packed"
    out = project.packed(method, sparsity)
    with project.work("pack", method, sparsity, pruned=pruned.model_hash) as work:
        saved = _pack(project, pruned, method, sparsity, work, facts) if packs else None
        if saved is None:
            write_manifest(work.files, pruned.model, **facts)
        work.publish(out)
        structured = isinstance(params.pattern(sparsity), StructuredPattern)
        rows = _bench(project, pruned, out if packs else None, structured, f"{method} {sparsity}") if times else None
        found: Packed | None = None
        if saved is not None:
            speed = None if rows is None else _speed(rows)
            said = packed_continued(work, project, out)
            found = Packed(dense=saved.dense, packed=saved.packed, speed=speed, continuation=said)
            say(
                f"packed {method} {sparsity}: {saved.packed / 1e6:.1f} MB instead of {saved.dense / 1e6:.1f} MB "
                f"({saved.share:.2f} x)"
            )
        beside = _beside_dense(rows) if structured and rows is not None else None
        if beside is not None:
            ratios = f"decode {beside.decode_over_dense:.2f} x, prefill {beside.prefill_over_dense:.2f} x"
            say(f"{method} {sparsity}: {ratios} the dense model's")
        project.write_cost("pack", method, sparsity, seconds=work.seconds, packed=found, beside_dense=beside)


def _pack(
    project: Project, pruned: Checkpoint, method: str, sparsity: str, work: Work, facts: Mapping[str, Any]
) -> Savings:
    """Write a variant without its zeros, and as integers where it is quantised, into the open work folder."""
    model = project.params.model
    expected = replace(
        project.variant(method, sparsity),
        model_hash=str(pruned.manifest.get("dense")),
        calibration_hash=str(pruned.manifest.get("calibration_hash")),
    )
    known = known_of_variant(
        pruned,
        project.masks(method, sparsity),
        project.solved(method, sparsity),
        expected,
        blocks=model.blocks,
        ignore=model.ignore,
        trust_remote_code=model.trust_remote_code,
    )
    shards = sum(name.endswith(".safetensors") for name in pruned.files)
    with counter(f"pack {method} {sparsity}", shards, "shard") as step:
        return pack(
            pruned.folder,
            work.files,
            known,
            journal=work,
            step=step,
            facts=facts,
            card=packed_card((pruned.folder / "README.md").read_text(encoding="utf-8")),
            trust_remote_code=model.trust_remote_code,
        )


def _bench(project: Project, pruned: Checkpoint, packed: Path | None, structured: bool, name: str) -> Bench:
    """Measure a variant, packed where it is; one that lost structures beside the dense model."""
    settings, folders = project.params.packed, [packed or pruned.folder]
    if packed is None:
        pruned.verify_all()
    if structured:
        dense = project.open_dense()
        dense.verify_all()
        folders.append(dense.folder)
    plan = Plan(new_tokens=settings.new_tokens, prefill=settings.prefill, rounds=settings.rounds)
    with counter(f"bench {name}", row_count(folders) * (plan.rounds + 1), "run") as step:
        return bench(folders, plan, memory=False, step=step)


def _speed(found: Bench) -> PackedSpeed:
    rows = {row.how: row for row in reversed(found.rows)}  # those of the first model
    packed, control, torch = (rows[how] for how in (PACKED, CONTROL, TORCH))
    return PackedSpeed(
        kernels=found.kernels,
        threads=found.threads,
        decode=packed.decode,
        control_decode=control.decode,
        torch_decode=torch.decode,
        prefill=packed.prefill,
        control_prefill=control.prefill,
        torch_prefill=torch.prefill,
    )


def _beside_dense(found: Bench) -> SpeedBesideDense:
    """Return the speed of the first of two models, packed or by torch, and of the dense one by torch."""
    own = next(row for row in found.rows if row.how != CONTROL)
    dense = next(row for row in reversed(found.rows) if row.how == TORCH)
    return SpeedBesideDense(
        threads=found.threads,
        decode=own.decode,
        dense_decode=dense.decode,
        prefill=own.prefill,
        dense_prefill=dense.prefill,
    )


if __name__ == "__main__":
    main(run)
