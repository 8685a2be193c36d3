"""The commands of `python -m unmask`: one module each, whose `main` takes the arguments behind the name."""
