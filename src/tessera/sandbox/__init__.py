"""Runs generated code behind an isolation that was probed at start, or refuses. `box.open_sandbox()` is the door."""
