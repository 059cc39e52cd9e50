"""The data set of the end-to-end tests: the rendered city in its tiny size.

Built once per state of the builder, below .cache, and shared by all tests and
test processes. A run of seconds on it, as a command line or in this process.
"""

import fcntl
import functools
import hashlib
import os
import pathlib
import socket
import subprocess
import sys

import jax
import numpy as np

from configs import quickstart
from cvgl_jax import checkpoint
from cvgl_jax import train as train_lib

ROOT = pathlib.Path(__file__).parents[1]
NAME = 'rendered_city/tiny'


@functools.cache  # one state of the builder for all of a session
def data_dir() -> pathlib.Path:
  """Folder that holds `rendered_city/tiny`, built if need be."""
  digest = hashlib.sha256()
  for path in sorted((ROOT / 'data_builders').rglob('*.py')):
    digest.update(path.read_bytes())
  folder = ROOT / '.cache' / f'tiny_world_{digest.hexdigest()[:12]}'
  folder.mkdir(parents=True, exist_ok=True)
  with (folder / 'lock').open('w') as lock:
    fcntl.flock(lock, fcntl.LOCK_EX)
    if not (folder / 'done').exists():
      command = [
        *(sys.executable, '-m', 'data_builders', 'rendered_city'),
        *('--config', 'tiny', '--data_dir', str(folder)),
      ]
      subprocess.run(command, check=True, cwd=ROOT, env=environment())
      (folder / 'done').touch()
  return folder


def environment(devices: int = 1) -> dict[str, str]:
  """Environment of a child process with so many CPU devices."""
  return os.environ | {
    'JAX_PLATFORMS': 'cpu',
    'XLA_FLAGS': f'--xla_force_host_platform_device_count={devices}',
    # As in conftest.py: small programs are worth keeping in the tests.
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0.2',
    'JAX_PERSISTENT_CACHE_MIN_ENTRY_SIZE_BYTES': '-1',
  }


def options(**overrides: object) -> dict[str, object]:
  """What a run of seconds changes in the demo's recipe, by key.

  Args:
    **overrides: further changes; '__' stands for '.' in the keys.
  """
  return {
    'data.dir': str(data_dir()),
    'data.names': (NAME,),
    'data.image_size': (32, 32),
    'data.threads': 2,
    'method.backbone_width': 4,
    'method.dim': 16,
    'train.batch_size': 8,
    'train.epochs': 8,
    'train.log_every_steps': 1,
    'train.eval_every_epochs': 2,
    'train.eval_at_start': False,
    'train.save_every_steps': 3,
  } | {key.replace('__', '.'): value for key, value in overrides.items()}


def train_arguments(workdir: pathlib.Path, **overrides: object) -> list[str]:
  """Command line of a run of seconds on the tiny world."""
  return [
    *(sys.executable, 'main.py', 'train', '--config=configs/quickstart.py'),
    f'--workdir={workdir}',
    f'--compile_cache={ROOT / ".cache" / "jax_tests"}',
    *(f'--config.{key}={value}' for key, value in options(**overrides).items()),
  ]


def config(**overrides: object) -> dict:
  """The config of the same run, for use in this process."""
  values = quickstart.get_config()
  values.update_from_flattened_dict(options(**overrides))
  return values.to_dict()


def train(workdir: pathlib.Path, **overrides: object) -> dict[str, float]:
  """The same run in this process, on all of its devices; the last metrics."""
  return train_lib.train(config(**overrides), str(workdir))


def several_processes(
  arguments: list[str], *, count: int = 2, devices: int = 1
) -> list[subprocess.Popen]:
  """Starts a command line as one run in several processes."""
  with socket.socket() as probe:
    probe.bind(('localhost', 0))
    port = probe.getsockname()[1]
  return [
    subprocess.Popen(
      [
        *arguments,
        f'--coordinator=localhost:{port}',
        f'--num_processes={count}',
        f'--process_id={i}',
      ],
      cwd=ROOT,
      env=environment(devices),
      stderr=subprocess.PIPE,
      text=True,
    )
    for i in range(count)
  ]


def saved_arrays(
  workdir: pathlib.Path, step: int | None = None
) -> dict[str, np.ndarray]:
  """Every array of a checkpoint, of the last one by default, by path."""
  import orbax.checkpoint as ocp

  step = checkpoint.choose(workdir, 'latest') if step is None else step
  path = workdir.absolute() / 'checkpoints' / str(step) / 'state'
  # To the host: what was saved on many devices is read on any number.
  tree = ocp.PyTreeCheckpointer().restore(
    path,
    restore_args=jax.tree.map(
      lambda _: ocp.RestoreArgs(restore_type=np.ndarray),
      ocp.PyTreeCheckpointer().metadata(path).item_metadata.tree,
    ),
  )
  return {
    jax.tree_util.keystr(key, simple=True, separator='/'): value
    for key, value in jax.tree_util.tree_leaves_with_path(tree)
  }
