"""Learning rates: as functions of time, who else moves them, and where they jump."""
