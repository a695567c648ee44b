"""The suites in the folders are run by test_stacks.py, each in a process of its own."""

from pathlib import Path

collect_ignore = [path.parent.name for path in Path(__file__).parent.glob("*/stack.toml")]
