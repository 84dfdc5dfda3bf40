"""Projects that several files of tests look at."""

import shutil

import pytest
import staged


@pytest.fixture(scope="session")
def complete(tmp_path_factory):
    """A project after every stage but the report, which has tests of its own."""
    return staged.run_all(staged.make(tmp_path_factory.mktemp("complete")), "evaluate")


@pytest.fixture
def project(complete, tmp_path):
    root = shutil.copytree(complete, tmp_path / "project")
    shutil.rmtree(root / "data" / ".work")
    return root
