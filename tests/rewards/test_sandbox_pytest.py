"""Tests written for pytest and unittest, run without pytest: what is run, and which tests are said to need more."""

import pytest

from data.questions import _kodcode_questions
from rewards.needs import missing
from rewards.sandbox import Program, SandboxError, check_sandbox, run_programs


def usable() -> bool:
    try:
        check_sandbox()
    except SandboxError:
        return False
    return True


def headed(tests: str) -> str:
    """With the imports that they use."""
    return f"import {'unittest, ' if 'unittest' in tests else ''}pytest\nfrom solution import f\n{tests}"


RIGHT = "def f(x):\n    if x < 0:\n        raise ValueError('negative value')\n    return 2 * x\n"
# Tests that `f` passes, and that fail where the last `4` is another number.
SEEN = {
    "set_up": "class TestF(unittest.TestCase):\n    def setUp(self):\n        self.x = 2\n    def test_a(self):\n        self.assertEqual(f(self.x), 4)\n",
    "set_up_class": "class TestF(unittest.TestCase):\n    @classmethod\n    def setUpClass(cls):\n        cls.x = 2\n    def test_a(self):\n        self.assertEqual(f(self.x), 4)\n",
    "set_up_module": "x = None\ndef setUpModule():\n    global x\n    x = 2\nclass TestF(unittest.TestCase):\n    def test_a(self):\n        self.assertEqual(f(x), 4)\n",
    "subtests": "class TestF(unittest.TestCase):\n    def test_a(self):\n        for n in (1, 2):\n            with self.subTest(n=n):\n                self.assertEqual(f(n), 2 if n == 1 else 4)\n",
    "asynchronous_case": "class TestF(unittest.IsolatedAsyncioTestCase):\n    async def test_a(self):\n        self.assertEqual(f(2), 4)\n",
    "inherited_tests": "class Base:\n    def test_a(self):\n        assert f(self.x) == 4\nclass TestF(Base):\n    x = 2\n",
    "case_of_another_name": "class Checks(unittest.TestCase):\n    def test_a(self):\n        self.assertEqual(f(2), 4)\n",
    "skipped_case": "class TestF(unittest.TestCase):\n    @unittest.skip('later')\n    def test_s(self):\n        self.fail()\n    def test_a(self):\n        self.assertEqual(f(2), 4)\n",
    "raised": "def test_a():\n    with pytest.raises(ValueError, match='negative') as info:\n        f(-1)\n    assert 'value' in str(info.value) and info.type is ValueError and info.typename == 'ValueError'\n    pytest.raises(ValueError, f, -1)\n    assert f(2) == 4\n",
    "setup_method": "class TestF:\n    def setup_method(self, method):\n        self.x = 2\n    def test_a(self):\n        assert f(self.x) == 4\n",
    "setup_class": "class TestF:\n    @classmethod\n    def setup_class(cls):\n        cls.x = 2\n    def test_a(self):\n        assert f(self.x) == 4\n",
    "setup_function": "x = []\ndef setup_function(function):\n    x.append(function.__name__)\ndef test_a():\n    assert f(len(x)) == 2\ndef test_b():\n    assert f(len(x)) == 4 and x[1] == 'test_b'\n",
    "setup_module": "def setup_module(module):\n    module.x = 2\ndef test_a():\n    assert f(x) == 4\n",
    "teardown": "seen = []\nclass TestF:\n    def teardown_method(self):\n        seen.append(2)\n    def test_a(self):\n        pass\n    def test_b(self):\n        assert f(seen[0]) == 4\n",
    "fresh_instances": "class TestF:\n    def test_a(self):\n        self.x = 1\n    def test_b(self):\n        assert not hasattr(self, 'x') and f(2) == 4\n",
    "state_of_the_module": "x = 0\ndef test_a():\n    global x\n    x += 2\ndef test_b():\n    assert f(x) == 4\n",
    "parameters": "@pytest.mark.parametrize('x, y', [(1, 2), pytest.param(9, 9, marks=pytest.mark.skip), pytest.param(2, 4)])\ndef test_a(x, y):\n    assert f(x) == y\n",
    "product_of_parameters": "seen = []\n@pytest.mark.parametrize('x', [1, 2])\n@pytest.mark.parametrize(['y'], [[3], [4]])\ndef test_a(x, y):\n    seen.append((x, y))\ndef test_b():\n    assert sorted(seen) == [(1, 3), (1, 4), (2, 3), (2, 4)] and f(2) == 4\n",
    "parameters_of_a_class": "@pytest.mark.parametrize('x', [2])\nclass TestF:\n    def test_a(self, x):\n        assert f(x) == 4\n",
    "fixtures": "@pytest.fixture\ndef base():\n    return [1]\n@pytest.fixture()\ndef two(base):\n    base.append(1)\n    yield sum(base)\n    base.clear()\ndef test_a(two, base):\n    assert base == [1, 1] and f(two) == 4\n",
    "fixture_of_a_class": "class TestF:\n    @pytest.fixture(autouse=True)\n    def make(self):\n        self.x = 2\n    def test_a(self):\n        assert f(self.x) == 4\n",
    "scopes": "made = []\n@pytest.fixture(scope='module')\ndef x():\n    made.append(1)\n    return 2\ndef test_a(x):\n    pass\ndef test_b(x):\n    assert made == [1] and f(x) == 4\n",
    "parameters_of_a_fixture": "@pytest.fixture(params=[(1, 2), (2, 4)], name='case')\ndef make(request):\n    return request.param\ndef test_a(case):\n    assert f(case[0]) == case[1]\n",
    "autouse": "x = 0\n@pytest.fixture(autouse=True)\ndef two():\n    global x\n    x = 2\n    yield\n    x = 0\ndef test_a():\n    assert f(x) == 4\n",
    "used_fixtures": "x = 0\n@pytest.fixture\ndef two():\n    global x\n    x = 2\n@pytest.mark.usefixtures('two')\ndef test_a():\n    assert f(x) == 4\n",
    "paths": "def test_a(tmp_path):\n    (tmp_path / 'x').write_text('2')\n    assert f(int((tmp_path / 'x').read_text())) == 4\n",
    "printed": "def test_a(capsys):\n    print(f(2))\n    assert capsys.readouterr().out == '4\\n'\n",
    "replaced": "import solution\ndef test_a(monkeypatch):\n    monkeypatch.setattr(solution, 'f', lambda x: 7)\n    assert solution.f(2) == 7\ndef test_b():\n    assert solution.f(2) == 4\n",
    "replaced_input": "def test_a(monkeypatch):\n    monkeypatch.setattr('builtins.input', lambda prompt='': '2')\n    assert f(int(input())) == 4\n",
    "patched": "from unittest.mock import patch\n@patch('solution.f')\ndef test_a(fake):\n    fake.return_value = 9\n    import solution\n    assert solution.f(2) == 9\ndef test_b():\n    assert f(2) == 4\n",
    "near": "def test_a():\n    assert f(0.15) == pytest.approx(0.3) and [f(1), f(2)] == pytest.approx([2, 4])\n",
    "near_in_a_mapping": "def test_a():\n    assert {'a': f(2.0)} == pytest.approx({'a': 4})\n",
    "skip": "@pytest.mark.skip(reason='later')\ndef test_s():\n    assert False\ndef test_a():\n    assert f(2) == 4\n",
    "skip_bare": "@pytest.mark.skip\ndef test_s():\n    assert False\ndef test_a():\n    assert f(2) == 4\n",
    "skipif": "import sys\n@pytest.mark.skipif(sys.version_info >= (3,), reason='old')\ndef test_s():\n    assert False\n@pytest.mark.skipif('sys.version_info < (3,)', reason='new')\ndef test_a():\n    assert f(2) == 4\n",
    "skip_inside": "def test_s():\n    pytest.skip('later')\n    assert False\ndef test_a():\n    assert f(2) == 4\n",
    "xfail": "@pytest.mark.xfail\ndef test_s():\n    assert False\ndef test_a():\n    assert f(2) == 4\n",
    "mark_of_the_module": "pytestmark = pytest.mark.filterwarnings('ignore')\n@pytest.mark.slow\ndef test_a():\n    assert f(2) == 4\n",
    "nested_class": "class TestF:\n    class TestG:\n        def test_a(self):\n            assert f(2) == 4\n",
    "other_prefix": "def testA():\n    assert f(2) == 4\n",
    "keyword_only": "@pytest.fixture\ndef two():\n    return 2\ndef test_a(*, two):\n    assert f(two) == 4\n",
    "class_test": "class TestF:\n    x = 2\n    @classmethod\n    def test_a(cls):\n        assert f(cls.x) == 4\n",
    "main_guard": "def test_a():\n    assert f(2) == 4\nif __name__ == '__main__':\n    pytest.main([__file__])\n",
    "static_test": "class TestF:\n    @staticmethod\n    def test_a():\n        assert f(2) == 4\n",
}  # fmt: skip
# Tests that need more than is provided, and what.
MORE = {
    "def test_a(mocker):\n    assert f(2) == 4\n": "the fixture mocker",
    "def test_a(benchmark):\n    assert benchmark(f, 2) == 4\ndef test_b():\n    pass\n": "the fixture benchmark",
    "@pytest.fixture\ndef two(tmpdir):\n    return 2\ndef test_a(two):\n    assert f(two) == 4\n": "the fixture tmpdir",
    "class TestF:\n    def test_a(self, client):\n        assert f(2) == 4\n": "the fixture client",
    "@pytest.mark.usefixtures('db')\ndef test_a():\n    assert f(2) == 4\n": "the fixture db",
    "@pytest.mark.parametrize('x', [2], indirect=True)\ndef test_a(x):\n    assert f(x) == 4\n": "indirect parameters",
    "@pytest.mark.parametrize(NAMES, [2])\ndef test_a(x):\n    assert f(x) == 4\n": "the fixture x",
    "@pytest.mark.asyncio\nasync def test_a():\n    assert f(2) == 4\n": "asynchronous tests",
    "def test_a():\n    with pytest.warns(UserWarning):\n        f(2)\n": "pytest.warns",
    "def test_a(caplog):\n    f(2)\n": "the fixture caplog",
    "import pytest as p\ndef test_a():\n    p.deprecated_call(f)\n": "pytest.deprecated_call",
    "from pytest import warns\ndef test_a():\n    f(2)\n": "pytest.warns",
    "pytest_plugins = ['x']\ndef test_a():\n    f(2)\n": "plugins of pytest",
    "def pytest_configure(config):\n    pass\ndef test_a():\n    f(2)\n": "a hook of pytest",
    "from unittest.mock import patch\n@patch('time.sleep')\ndef test_a(sleep):\n    f(2)\n": "a patch of time.sleep",
    "from unittest import mock\ndef test_a():\n    with mock.patch.dict('os.environ', {}):\n        f(2)\n": "unittest.mock.patch.dict",
    "import time\ndef test_a(monkeypatch):\n    monkeypatch.setattr(time, 'time', lambda: 0)\n    f(2)\n": "a patch of time.time",
    "def test_a(monkeypatch):\n    monkeypatch.setenv('A', 'b')\n    f(2)\n": "monkeypatch.setenv",
    "import os\ndef test_a():\n    os.environ['A'] = 'b'\n    f(2)\n": "a change of os.environ",
    "import os\ndef test_a(tmp_path):\n    os.chdir(tmp_path)\n    f(2)\n": "os.chdir",
    "import subprocess\ndef test_a():\n    f(2)\n": "subprocess",
    "import inspect\ndef test_a():\n    inspect.signature(f)\n": "inspect",
    "from threading import Thread\ndef test_a():\n    Thread(target=f, args=(2,)).start()\n": "threading",
    "from solution import Base\nclass Own(Base):\n    pass\ndef test_a():\n    Own()\n": "a class that derives from Base",
    "class TestF:\n    def __init__(self):\n        pass\n    def test_a(self):\n        f(2)\n": "a test class with a constructor",
    "class TestF(unittest.TestCase):\n    def test_a(self):\n        with self.assertLogs():\n            f(2)\n": "self.assertLogs",
    "class TestF(unittest.TestCase):\n    @pytest.mark.parametrize('x', [2])\n    def test_a(self, x):\n        f(x)\n": "pytest.mark.parametrize in a unittest.TestCase",
    "def helper():\n    f(2)\n": "no test that is a function",
    "def test_a():\n    yield f, 2\n": "tests that are generators",
    "from .other import g\ndef test_a():\n    f(2)\n": "a relative import",
}  # fmt: skip


@pytest.mark.parametrize("tests", SEEN.values(), ids=SEEN)
def test_what_is_provided_needs_nothing_more(tests):
    assert missing(headed(tests)) == []


def verdicts(modules) -> dict[str, str]:
    """Why each module of tests fails, by its name; those that pass are left out."""
    programs = [Program(RIGHT, headed(tests), collect=True) for tests in modules]
    given = run_programs(programs, unsandboxed=not usable())
    return {name: each.reason for name, each in zip(SEEN, given, strict=True) if not each.passed}


def test_every_test_is_run_with_its_set_up():
    assert verdicts(SEEN.values()) == {}


@pytest.mark.slow
def test_every_test_can_fail():
    assert verdicts(tests[::-1].replace("4", "5", 1)[::-1] for tests in SEEN.values()).keys() == SEEN.keys()


@pytest.mark.parametrize(("tests", "needed"), MORE.items(), ids=MORE.values())
def test_tests_that_need_more_are_left_out(tests, needed, capsys):
    assert needed in missing(headed(tests))
    row = {
        "question": "",
        "test": headed(tests),
        "test_info": [{"function_declaration": "def f(x):", "function_name": "f"}],
    }
    assert _kodcode_questions([row], None) == []
    assert "1 questions are left out" in capsys.readouterr().err


def test_where_no_test_runs_nothing_passes():
    only = "@pytest.mark.skip\ndef test_a():\n    assert f(2) == 4\n"
    (given,) = run_programs([Program(RIGHT, headed(only), collect=True)], unsandboxed=not usable())
    assert not given.passed and "no test ran" in given.reason
