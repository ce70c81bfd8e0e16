//! Desired pods, one worker per pod, the planner and the status.
