"""Offline data: from a data set to normalised TensorDict transitions and mixed batches."""

from rambo_trl.data.buffers import RealModelReplayBuffer, make_real_buffer, make_replay_buffer
from rambo_trl.data.bundled import ensure_bundled
from rambo_trl.data.environment import make_environment, mujoco_messages_logged
from rambo_trl.data.log_import import ImportedLog, import_logs
from rambo_trl.data.log_settings import LogImport
from rambo_trl.data.log_store import store_log
from rambo_trl.data.names import bundled_names
from rambo_trl.data.offline_dataset import OfflineDataset
from rambo_trl.data.online_rows import OnlineRows, OnlineShareSampler
from rambo_trl.data.playing import check_environment
from rambo_trl.data.scores import D4RL_REFERENCE_SCORES, normalized_score, reference_scores_for
from rambo_trl.data.spaces import ObservationLayout
from rambo_trl.data.transition_data import TransitionData

__all__ = [
    "D4RL_REFERENCE_SCORES",
    "ImportedLog",
    "LogImport",
    "ObservationLayout",
    "OfflineDataset",
    "OnlineRows",
    "OnlineShareSampler",
    "RealModelReplayBuffer",
    "TransitionData",
    "bundled_names",
    "check_environment",
    "ensure_bundled",
    "import_logs",
    "make_environment",
    "make_real_buffer",
    "make_replay_buffer",
    "mujoco_messages_logged",
    "normalized_score",
    "reference_scores_for",
    "store_log",
]
