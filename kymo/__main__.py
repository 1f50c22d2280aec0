"""``python -m kymo``: the command line."""

from kymo import main

main()
