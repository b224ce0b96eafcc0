"""`python -m station.cli`: how the supervisor starts the station's processes."""

from station.cli import main

main()
