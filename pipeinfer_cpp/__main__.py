"""`python -m pipeinfer_cpp` is `pipeinfer`."""

from __future__ import annotations

from pipeinfer_cpp.cli import main

if __name__ == "__main__":
    main()
