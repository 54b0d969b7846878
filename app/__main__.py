"""`python -m app` is `modelwright`."""

from app.cli import main

main()
