"""Which definitions a function reaches, and what changes their digest."""

from __future__ import annotations

from pathlib import Path

import pytest
import tiny
from hypothesis import given
from hypothesis import strategies as st

from stages._code import Code

FILES = {
    "shop/__init__.py": "from shop.till import pay\n",
    "shop/till.py": '''
"""The till."""
import math
from typing import TYPE_CHECKING
from shop import stock
from shop.prices import PRICE as price
if TYPE_CHECKING:
    from shop.unused import Nothing

RATE = 0.2

def pay(count: int) -> float:
    """What is paid."""
    return taxed(count * price) + math.ceil(stock.left(count))

def taxed(amount):
    return amount * (1 + RATE)

def refund(amount):
    from shop.unused import Nothing
    return Nothing(amount)
''',
    "shop/prices.py": "PRICE = 3\nOTHER = 4\n",
    "shop/stock.py": "LIMIT = 5\n\ndef left(n):\n    return min(n, LIMIT)\n\ndef order(n):\n    return n\n",
    "shop/unused.py": "class Nothing:\n    def __init__(self, n):\n        self.n = n\n",
}


@pytest.fixture
def shop(tmp_path: Path) -> Path:
    for name, text in FILES.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return tmp_path / "shop"


def reached(folder: Path, name: str = "pay") -> set[str]:
    return {f"{module}:{found}" for module, found in Code({"shop": folder}).reached(("shop.till", name))}


def digest(folder: Path, name: str = "pay") -> str:
    return Code({"shop": folder}).digest(("shop.till", name))


PAID = {
    "shop.till:pay",
    "shop.till:taxed",
    "shop.till:RATE",
    "shop.prices:PRICE",
    "shop.stock:left",
    "shop.stock:LIMIT",
}


def test_names_lead_through_functions_constants_modules_and_imports_inside(shop: Path) -> None:
    assert reached(shop) == PAID
    assert reached(shop, "refund") == {"shop.till:refund", "shop.unused:Nothing"}
    assert {f"{m}:{n}" for m, n in Code({"shop": shop}).reached(("shop", "pay"))} >= PAID, "through the page"


CHANGES = {
    "a comment": ("till.py", "RATE = 0.2", "RATE = 0.2  # of 2026", False),
    "a docstring": ("till.py", "What is paid.", "The sum.", False),
    "an annotation": ("till.py", "count: int", "count: float", False),
    "blank lines": ("till.py", "RATE = 0.2", "\n\n\nRATE = 0.2", False),
    "a function that is not reached": ("stock.py", "    return n\n", "    return 2 * n\n", False),
    "a constant that is not reached": ("prices.py", "OTHER = 4", "OTHER = 5", False),
    "the function itself": ("till.py", "+ math", "- math", True),
    "a helper": ("till.py", "(1 + RATE)", "(2 + RATE)", True),
    "a constant": ("till.py", "0.2", "0.25", True),
    "a constant of another module": ("prices.py", "PRICE = 3", "PRICE = 4", True),
    "a function by its module's name": ("stock.py", "min(n", "max(n", True),
    "what that reads": ("stock.py", "LIMIT = 5", "LIMIT = 6", True),
    "which name an import binds": ("till.py", "PRICE as price", "OTHER as price", True),
    "a default": ("till.py", "pay(count: int)", "pay(count: int = 1)", True),
    "a decorator": ("till.py", "def taxed", "@math.trunc\ndef taxed", True),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_digest_follows_what_can_run_and_nothing_else(shop: Path, change: str) -> None:
    name, old, new, counts = CHANGES[change]
    before = digest(shop)
    path = shop / name
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")
    assert (digest(shop) != before) is counts


def test_data_beside_the_code_counts(shop: Path) -> None:
    before = digest(shop)
    (shop / "page.html").write_text("<p>")
    assert digest(shop) != before


@given(st.sampled_from(sorted(FILES["shop/till.py"].splitlines())), st.text("abc #", max_size=12))
def test_no_comment_changes_a_digest(line: str, words: str) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "shop"
        root.mkdir()
        for name, text in FILES.items():
            (root / Path(name).name).write_text(text, encoding="utf-8")
        before = digest(root)
        till = root / "till.py"
        if '"""' not in line:
            till.write_text(till.read_text().replace(f"{line}\n", f"{line}  # {words}\n", 1))
        assert digest(root) == before


def test_what_stages_reach() -> None:
    code = Code({name: tiny.REPOSITORY / name for name in ("zpruner", "stages")})
    modules = {
        stage: {m for m, _ in code.reached((f"stages.{stage}", "run"))} for stage in ("calibrate", "mask", "score")
    }
    assert {"zpruner.calibration.accumulate", "zpruner.model.load", "zpruner.model.bfloat16"} <= modules["calibrate"]
    assert not {
        m for m in modules["calibrate"] if m.startswith(("zpruner.methods", "zpruner.masks", "zpruner.updates"))
    }
    assert {"zpruner.masks._select", "zpruner.pruning.sequential", "zpruner.calibration.replay"} <= modules["mask"]
    assert "zpruner.calibration.capture" not in modules["score"]
    formula = {m for m, _ in code.reached(("zpruner.methods.expression", "Expression"))}
    assert {"zpruner.formula.parse", "zpruner.formula.evaluate"} <= formula
