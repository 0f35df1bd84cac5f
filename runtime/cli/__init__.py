"""The `headrace` command. Nothing is imported before it is known what was asked."""


def main() -> None:
    """Run the command of this process's arguments and exit with its code."""
    import sys

    from headrace.runtime.cli.command import run

    sys.exit(run(sys.argv[1:]))
