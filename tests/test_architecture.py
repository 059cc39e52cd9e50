"""The tree keeps its shape: one-way imports, short files, no print."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]
SOURCES = [
  ROOT / 'main.py',
  *sorted(
    path
    for folder in ('cvgl_jax', 'configs', 'data_builders')
    for path in (ROOT / folder).rglob('*.py')
  ),
]

# Part of cvgl_jax -> the parts that it may import.
ALLOWED = {
  'strict': set(),
  'sharding': set(),
  'losses': {'losses'},
  'retrieval': {'retrieval', 'sharding', 'strict'},
  'models': {'models', 'strict', 'sharding'},
  'optim': {'optim', 'strict'},
  'data': {'data', 'losses', 'retrieval', 'strict', 'sharding'},
  'methods': {'methods', 'models', 'losses', 'retrieval', 'strict'},
  'state': {'optim', 'sharding', 'strict'},
  'mining': {'state', 'sharding'},
  'checkpoint': {'sharding', 'integrity'},
  'integrity': {'sharding'},
  'writer': {'strict'},
  'evaluators': {
    'evaluators',
    'retrieval',
    'data',
    'models',
    'sharding',
    'strict',
    'writer',
  },
  'report': {'report', 'data', 'retrieval', 'writer', 'strict'},
  'settings': {'optim', 'writer'},
  'experiment': {
    'settings',
    'strict',
    'sharding',
    'checkpoint',
    'writer',
    'data',
    'methods',
    'optim',
    'evaluators',
  },
  'evaluate': {
    'settings',
    'experiment',
    'retrieval',
    'evaluators',
    'checkpoint',
    'sharding',
    'writer',
    'methods',
    'models',
  },
  'initial_state': {'settings', 'experiment', 'mining', 'sharding', 'state'},
  'teacher': {
    'settings',
    'experiment',
    'checkpoint',
    'integrity',
    'models',
    'strict',
  },
  'train': {
    'settings',
    'experiment',
    'evaluate',
    'checkpoint',
    'initial_state',
    'teacher',
    'mining',
    'sharding',
    'state',
    'writer',
    'data',
    'optim',
    'progress',
    'stop',
  },
  'chain': {
    'chain',
    'train',
    'teacher',
    'evaluate',
    'experiment',
    'settings',
    'evaluators',
    'retrieval',
    'data',
    'checkpoint',
    'integrity',
    'sharding',
    'strict',
    'stop',
    'writer',
  },
  'progress': set(),
  'stop': set(),
  'evaluate_features': {'retrieval', 'evaluate_flags', 'strict', 'writer'},
  'evaluate_flags': {'retrieval'},
  'commands': {
    'train',
    'chain',
    'evaluate',
    'evaluate_features',
    'evaluate_flags',
    'report',
    'experiment',
    'settings',
    'stop',
  },
}
# Only here: a GPU machine may lack these libraries.
ONLY_IN = {
  'tensorflow_datasets': {'data', 'data_builders'},
  'grain': {'data'},
  'array_record': {'data', 'data_builders'},
  'tqdm': {'data_builders', 'evaluators'},
  'ml_collections': {'main', 'configs'},
  'orbax': {'checkpoint'},
  'cv2': {'data', 'data_builders'},
}
# Files over 400 lines, and why.
LONG = {
  'cvgl_jax/checkpoint.py': 'saving, checking and choosing read together',
}


def part_of(path: pathlib.Path) -> str:
  """'losses', 'train', ...; the top folder outside cvgl_jax."""
  parts = path.relative_to(ROOT).with_suffix('').parts
  return parts[1] if parts[0] == 'cvgl_jax' and len(parts) > 1 else parts[0]


def imports(path: pathlib.Path) -> list[str]:
  """Dotted names that a file imports, wherever in it."""
  found = []
  for node in ast.walk(ast.parse(path.read_text())):
    if isinstance(node, ast.Import):
      found += [alias.name for alias in node.names]
    elif isinstance(node, ast.ImportFrom):
      found += [f'{node.module}.{alias.name}' for alias in node.names]
  return found


@pytest.mark.parametrize(
  'path', SOURCES, ids=lambda p: str(p.relative_to(ROOT))
)
def test_imports_point_one_way(path):
  part, top = part_of(path), path.relative_to(ROOT).parts[0]
  for name in imports(path):
    pieces = name.split('.')
    assert pieces[0] not in ('tensorflow', 'torch', 'clu'), name
    if pieces[0] in ONLY_IN:
      assert part in ONLY_IN[pieces[0]] or top in ONLY_IN[pieces[0]], name
    if name.startswith('flax.linen'):
      assert part in ('models', 'methods'), name
    if pieces[0] == 'cvgl_jax' and top == 'cvgl_jax':
      assert pieces[1] in ALLOWED[part], f'{part} imports {name}'
    if pieces[0] == 'cvgl_jax':
      assert top not in ('configs', 'data_builders'), name
    if pieces[0] in ('configs', 'data_builders'):
      assert top == pieces[0], name


@pytest.mark.parametrize(
  'path', SOURCES, ids=lambda p: str(p.relative_to(ROOT))
)
def test_files_are_short_and_documented(path):
  text = path.read_text()
  limit = 550 if str(path.relative_to(ROOT)) in LONG else 400
  assert len(text.splitlines()) <= limit, 'split it, or say why in LONG'
  assert ast.get_docstring(ast.parse(text)), 'module docstring missing'


def test_main_and_the_loop_stay_small():
  assert len((ROOT / 'main.py').read_text().splitlines()) <= 100
  train = (ROOT / 'cvgl_jax' / 'train.py').read_text()
  assert len(train.splitlines()) <= 300


def test_the_loop_names_no_method_data_set_or_loss():
  train = (ROOT / 'cvgl_jax' / 'train.py').read_text()
  names = [p.stem for p in (ROOT / 'cvgl_jax' / 'methods').glob('*.py')]
  names += [p.name for p in (ROOT / 'data_builders').iterdir() if p.is_dir()]
  for name in set(names) - {'__init__', 'contract', '__pycache__'}:
    assert name not in train, name


def test_a_package_init_has_no_code():
  for path in (ROOT / 'cvgl_jax').rglob('__init__.py'):
    if path.parent.name == 'report':
      continue
    body = ast.parse(path.read_text()).body
    assert all(isinstance(node, ast.Expr) for node in body), path


def test_the_train_step_imports_without_the_data_libraries():
  """A GPU machine may have jax, flax and optax only."""
  code = """
import sys
for name in ('tensorflow_datasets', 'grain', 'array_record', 'ml_collections'):
  sys.modules[name] = None
import cvgl_jax.methods.university1652, cvgl_jax.state, cvgl_jax.sharding
import cvgl_jax.optim.build, cvgl_jax.losses.classification
import cvgl_jax.losses.contrastive, cvgl_jax.retrieval.metrics
import cvgl_jax.retrieval.search, cvgl_jax.models.torch_weights
import cvgl_jax.data.augment_sample4geo, cvgl_jax.data.prepare
"""
  subprocess.run([sys.executable, '-c', code], check=True, cwd=ROOT)


def test_no_path_of_a_machine_or_index_address_is_in_the_tree():
  words = ('index-' + 'url', '/ro' + 'ot/', '/wo' + 'rk/')
  listed = subprocess.run(
    ['git', 'ls-files'], cwd=ROOT, capture_output=True, text=True, check=False
  ).stdout.split()
  for name in listed:
    if name.endswith(('.npz', '.png', '.jpg')):
      continue
    text = (ROOT / name).read_text(errors='ignore')
    assert not any(word in text for word in words), name
