"""A program for which it is a day later once a file exists: `another_day.py FILE PROGRAM...`."""

from __future__ import annotations

import datetime
import os
import runpy
import sys

FILE = sys.argv[1]


class Date(datetime.date):
    """Dates, of which one day may be left out."""

    @classmethod
    def today(cls) -> Date:
        return super().today() + datetime.timedelta(days=os.path.exists(FILE))


if __name__ == "__main__":
    datetime.date = Date  # type: ignore[misc]
    del sys.argv[:2]
    runpy.run_path(sys.argv[0], run_name="__main__")
