"""State models over the public client. So far: workflows, whose checkpoints are stored as a base and
deltas."""

from raftstate.state.checkpoints import Checkpoint
from raftstate.state.workflow import AsyncWorkflow, Restored, Workflow

__all__ = ["AsyncWorkflow", "Checkpoint", "Restored", "Workflow"]
