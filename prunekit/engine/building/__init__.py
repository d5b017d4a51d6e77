"""From a schedule to policies, in three steps: classes are found, components are checked, policies are bound."""
