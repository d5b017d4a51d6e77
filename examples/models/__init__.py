"""Networks in plain torch, with the parameter names that published schedules expect."""
