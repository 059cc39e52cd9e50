"""The data set of the end-to-end tests: the rendered city in its tiny size.

Built once per state of the builder, below .cache, and shared by all tests and
test processes.
"""

import fcntl
import hashlib
import os
import pathlib
import subprocess
import sys

ROOT = pathlib.Path(__file__).parents[1]
NAME = 'rendered_city/tiny'


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
  }


def train_arguments(workdir: pathlib.Path, **overrides: object) -> list[str]:
  """Command line of a run of seconds on the tiny world."""
  options = {
    'data.dir': str(data_dir()),
    'data.names': f"('{NAME}',)",
    'data.image_size': '(32, 32)',
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
  return [
    *(sys.executable, 'main.py', 'train', '--config=configs/quickstart.py'),
    f'--workdir={workdir}',
    f'--compile_cache={ROOT / ".cache" / "jax_tests"}',
    *(f'--config.{key}={value}' for key, value in options.items()),
  ]
