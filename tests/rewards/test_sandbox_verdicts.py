"""What passes and what fails in the sandbox: right programs of every kind, and wrong ones that attack their tests."""

import pytest

from rewards.sandbox import Limits, Program, SandboxError, check_sandbox, run_programs


def usable() -> bool:
    try:
        check_sandbox()
    except SandboxError:
        return False
    return True


needs_bwrap = pytest.mark.skipif(not usable(), reason="bubblewrap is not here, or makes no sandbox")

# Code and tests that it passes.
RIGHT = {
    "dev_null": ("def f():\n    with open('/dev/null', 'w') as g:\n        return g.write('abc')", "assert f() == 3"),
    "random_devices": ("def f():\n    return len(open('/dev/urandom', 'rb').read(4))", "assert f() == 4"),
    "pool": (
        "from multiprocessing import Pool\ndef square(x):\n    return x * x\n"
        "def f(xs):\n    with Pool() as pool:\n        return pool.map(square, xs)",
        "assert f([1, 2, 3]) == [1, 4, 9]",
    ),
    "threads": (
        "from concurrent.futures import ThreadPoolExecutor\ndef f(xs):\n"
        "    with ThreadPoolExecutor(16) as pool:\n        return list(pool.map(str, xs))",
        "assert f(range(40)) == [str(n) for n in range(40)]",
    ),
    "shared_memory": (
        "from multiprocessing.shared_memory import SharedMemory\ndef f():\n    held = SharedMemory(create=True, size=9)\n"
        "    held.buf[0] = 7\n    got = held.buf[0]\n    held.close(); held.unlink()\n    return got",
        "assert f() == 7",
    ),
    "zone": (
        "from datetime import datetime\nfrom zoneinfo import ZoneInfo\n"
        "def f(t):\n    return t.astimezone(ZoneInfo('Europe/Berlin')).hour\n"
        "def g():\n    return datetime(2024, 7, 1, tzinfo=ZoneInfo('Asia/Tokyo'))",
        "import datetime\nassert f(datetime.datetime(2024, 7, 1, 12, tzinfo=datetime.timezone.utc)) == 14\n"
        "assert g().utcoffset() == datetime.timedelta(hours=9)",
    ),
    "values": (
        "def f(x):\n    return x",
        "import collections, decimal, fractions, datetime\n"
        "for x in [None, True, 10**5000, -3, 2.5, float('inf'), 1j, 'é\\ud800\\0', b'\\xff', bytearray(b'a'), (1, (2,)), [[]], {1}, \n"
        "          frozenset({2}), {'a': {1: (2,)}}, range(1, 9, 2), slice(1, 2), ..., collections.deque([1], 3), {3: 4}.keys(),\n"
        "          collections.Counter('aab'), collections.OrderedDict(a=1), collections.defaultdict(list, a=[1]), decimal.Decimal('1.10'),\n"
        "          fractions.Fraction(1, 3), datetime.datetime(2020, 1, 2, 3, 4, 5, 6), datetime.timedelta(1, 2, 3)]:\n"
        "    got = f(x)\n    assert got == x and type(got) is type(x), x\n"
        "assert str(f(float('nan'))) == 'nan' and list(f({1: 2}.values())) == [2] and f(int) is int and f(len) is not None",
    ),
    "mutated_arguments": (
        "def f(xs, d, s):\n    xs.append([1]); xs[0].append(2); d['a'] = 1; s.clear()\n    return xs\n"
        "def g(xs):\n    return list(xs)",
        "xs, d, s = [[0]], {}, {5}\ngot = f(xs, d=d, s=s)\n"
        "assert xs == [[0, 2], [1]] and d == {'a': 1} and s == set() and got is xs and g(xs) is not xs",
    ),
    "exceptions": (
        "import json\nclass Own(ValueError):\n    def __init__(self, code):\n        super().__init__(f'code {code}')\n        self.code = code\n"
        "def f(n):\n    if n == 0: raise Own(7)\n    if n == 1: return {}['k']\n    if n == 2: json.loads('{')\n    raise SystemExit(4)",
        "import json\nfrom solution import Own\n"
        "try:\n    f(0)\n    assert False\nexcept Own as error:\n    assert str(error) == 'code 7' and error.code == 7 and isinstance(error, ValueError)\n"
        "try:\n    f(1)\n    assert False\nexcept KeyError as error:\n    assert error.args == ('k',)\n"
        "try:\n    f(2)\n    assert False\nexcept json.JSONDecodeError as error:\n    assert 'Expecting' in str(error)\n"
        "try:\n    f(3)\n    assert False\nexcept SystemExit as error:\n    assert error.code == 4",
    ),
    "classes": (
        "class Stack:\n    LIMIT = 3\n    def __init__(self, items=()):\n        self._items = list(items)\n"
        "    def push(self, x):\n        self._items.append(x); return self\n    def pop(self):\n        return self._items.pop()\n"
        "    @property\n    def top(self):\n        return self._items[-1]\n    def __len__(self):\n        return len(self._items)\n"
        "    def __iter__(self):\n        return iter(self._items)\n    def __contains__(self, x):\n        return x in self._items\n"
        "    def __getitem__(self, i):\n        return self._items[i]\n    def __eq__(self, o):\n        return self._items == o._items\n"
        "    def __repr__(self):\n        return f'Stack({self._items})'\n    def __bool__(self):\n        return bool(self._items)\n"
        "    def __enter__(self):\n        return self\n    def __exit__(self, *a):\n        self._items = []\n"
        "    @classmethod\n    def of(cls, *xs):\n        return cls(xs)\n    @staticmethod\n    def twice(x):\n        return 2 * x\n"
        "class Deep(Stack):\n    pass",
        "s = Stack()\nassert not s and len(s) == 0\nassert s.push(1) is s and len(s.push(2)) == 2 and s.top == 2 and s[0] == 1\n"
        "assert 1 in s and 5 not in s and list(s) == [1, 2] and [x for x in s] == s._items and repr(s) == 'Stack([1, 2])'\n"
        "assert s == Stack([1, 2]) and s != Stack([1]) and s == Stack.of(1, 2) and Stack.twice(4) == 8 and Stack.LIMIT == 3\n"
        "assert isinstance(Deep(), Stack) and issubclass(Deep, Stack) and type(s) is Stack and type(s).__name__ == 'Stack'\n"
        "assert hasattr(s, 'push') and not hasattr(s, 'shove') and callable(s.push) and not callable(s)\n"
        "s._items = [9]\nassert s.pop() == 9\n"
        "with Stack([1]) as t:\n    assert len(t) == 1\nassert len(t) == 0\n"
        "try:\n    s.pop()\n    assert False\nexcept IndexError:\n    pass\n"
        "import copy\nu = Stack([1]); v = copy.deepcopy(u); v.push(2)\nassert len(u) == 1 and len(v) == 2",
    ),
    "operators": (
        "class Vector:\n    def __init__(self, x, y):\n        self.x, self.y = x, y\n    def __add__(self, o):\n        return Vector(self.x + o.x, self.y + o.y)\n"
        "    def __mul__(self, k):\n        return Vector(self.x * k, self.y * k)\n    __rmul__ = __mul__\n    def __neg__(self):\n        return self * -1\n"
        "    def __eq__(self, o):\n        return isinstance(o, Vector) and (self.x, self.y) == (o.x, o.y)\n    def __hash__(self):\n        return hash((self.x, self.y))\n"
        "    def __lt__(self, o):\n        return self.x < o.x\n    def __abs__(self):\n        return (self.x ** 2 + self.y ** 2) ** 0.5",
        "a, b = Vector(1, 2), Vector(3, 4)\nassert a + b == Vector(4, 6) and (a * 3 * 2).y == 12 and (2 * a).x == 2 and (-b).x == -3\n"
        "assert a < b and not b < a and sorted([b, a])[0] is a and abs(b) == 5.0 and len({a, Vector(1, 2), b}) == 2 and a != 3",
    ),
    "kinds_of_classes": (
        "from enum import Enum, IntEnum\nfrom collections import namedtuple\nfrom dataclasses import dataclass\nfrom typing import NamedTuple\n"
        "class Color(Enum):\n    RED = 1\n    BLUE = 2\nclass Level(IntEnum):\n    LOW = 1\nPoint = namedtuple('Point', 'x y')\n"
        "@dataclass\nclass Item:\n    name: str\n    price: float = 1.0\nclass Bag(dict):\n    def add(self, k):\n        self[k] = self.get(k, 0) + 1\n"
        "class Pile(list):\n    def twice(self):\n        return [x * 2 for x in self]\n"
        "def f(c):\n    return Color.BLUE if c is Color.RED else Color.RED\ndef p():\n    return Point(1, 2)\ndef level():\n    return Level.LOW",
        "assert f(Color.RED) == Color.BLUE and f(Color.RED) is Color.BLUE and f(Color.BLUE).name == 'RED' and Color['RED'].value == 1\n"
        "assert [c.name for c in Color] == ['RED', 'BLUE'] and len(Color) == 2 and isinstance(Color.RED, Color)\n"
        "assert p() == (1, 2) and p().y == 2 and p()[0] == 1 and isinstance(p(), tuple) and tuple(p()) == (1, 2) and p() == Point(1, 2)\n"
        "assert level() == 1 and level() is Level.LOW and level() + 1 == 2\n"
        "assert Item('a') == Item('a', 1.0) and Item('a') != Item('b') and Item('a').name == 'a' and repr(Item('a')) == \"Item(name='a', price=1.0)\"\n"
        "b = Bag(); b.add('x'); b.add('x')\nassert b == {'x': 2} and b['x'] == 2 and len(b) == 1 and isinstance(b, dict) and list(b) == ['x']\n"
        "q = Pile([1, 2]); q.append(3)\nassert q == [1, 2, 3] and q.twice() == [2, 4, 6] and 3 in q and len(q) == 3",
    ),
    "iterators": (
        "def f(n):\n    for i in range(n):\n        got = yield i\n        if got: yield got\ndef m(xs):\n    return map(str, xs)\ndef count():\n    n = 0\n    while True:\n        yield n\n        n += 1",
        "import types, itertools\ng = f(3)\nassert isinstance(g, types.GeneratorType) and next(g) == 0 and g.send('x') == 'x' and list(g) == [1, 2]\n"
        "assert list(m([1, 2])) == ['1', '2'] and list(itertools.islice(count(), 3)) == [0, 1, 2] and sum(f(4)) == 6",
    ),
    "functions_of_the_tests": (
        "import functools\ndef apply(f, xs):\n    return [f(x) for x in xs]\ndef cached(f):\n    @functools.wraps(f)\n    def g(*a, **k):\n        return f(*a, **k) + 1\n    return g\n"
        "def fill(node):\n    node.value = 5\n    return node.next.value\ndef total(xs):\n    return sum(xs)\ndef catch(f):\n    try:\n        f()\n    except ZeroDivisionError as e:\n        return str(e)\n"
        "def twice(x):\n    return 2 * x\ndef make():\n    return lambda x: x + 10\ndef write(file):\n    file.write('hi')",
        "calls = []\ndef note(x):\n    calls.append(x)\n    return -x\nassert apply(note, [1, 2]) == [-1, -2] and calls == [1, 2]\n"
        "assert apply(len, ['ab']) == [2] and apply(lambda x: twice(x), [3]) == [6] and apply(make(), [1]) == [11]\n"
        "@cached\ndef h(a, *, b=0):\n    return a + b\nassert h(1, b=2) == 4 and h.__name__ == 'h'\n"
        "class Node:\n    def __init__(self, value, next=None):\n        self.value, self.next = value, next\n"
        "n = Node(1, Node(2))\nassert fill(n) == 2 and n.value == 5 and total(iter([1, 2])) == 3 and total(x for x in (1, 2)) == 3\n"
        "assert catch(lambda: 1 / 0) == 'division by zero'\nimport io\nfile = io.StringIO()\nwrite(file)\nassert file.getvalue() == 'hi'",
    ),
    "printed_and_read": (
        "def f():\n    name = input('Name? ')\n    print('Hello', name)\n    return name",
        "import io, sys, contextlib\nout = io.StringIO()\nsys.stdin = io.StringIO('Ann\\n')\nwith contextlib.redirect_stdout(out):\n    assert f() == 'Ann'\n"
        "assert out.getvalue() == 'Name? Hello Ann\\n'",
    ),
    "files": (
        "def f(path):\n    text = open(path).read()\n    open(path + '.out', 'w').write(text.upper())\ndef g(folder):\n    open(folder + '/x', 'w').write('1')",
        "import os\nopen('in', 'w').write('a')\nf('in')\nassert open('in.out').read() == 'A'\n"
        "os.mkdir('folder')\ng(os.path.abspath('folder'))\nassert os.listdir('folder') == ['x']",
    ),
    "private_files": (  # of modes 0600 and 0700, which belong to whoever made them
        "import os, tempfile\ndef f(path):\n    with open(path, 'a') as file:\n        file.write('b')\n    return open(path).read()\n"
        "def g():\n    return tempfile.mkdtemp()\ndef move(a, b):\n    os.rename(a, b)",
        "import os, shutil, tempfile\nwith tempfile.TemporaryDirectory() as folder:\n    assert f(folder + '/x') == 'b'\n"
        "with tempfile.NamedTemporaryFile('w', delete=False) as file:\n    file.write('a')\nassert f(file.name) == 'ab'\nmove(file.name, 'moved')\n"
        "f('new')\nos.remove('new')\nfolder = g()\nopen(folder + '/x', 'w').close()\nshutil.rmtree(folder)\nassert os.listdir() == ['moved']",
    ),
    "exceptions_of_the_tests": (
        "def retry(f, times, kind):\n    for left in reversed(range(times)):\n        try:\n            return f()\n        except kind as error:\n"
        "            last = error.code\n    raise kind(f'gave up at {last}')\ndef call(f):\n    return f()",
        "class Own(ValueError):\n    def __init__(self, text, code=0):\n        super().__init__(text)\n        self.code = code\n"
        "class Other(Own): pass\ncalls = []\ndef fails():\n    calls.append(1)\n    if len(calls) < 3:\n        raise Other('no', 3)\n    return 7\n"
        "assert retry(fails, 5, Own) == 7 and len(calls) == 3\ncalls.clear()\n"
        "try:\n    retry(fails, 2, Own)\n    assert False\nexcept Own as error:\n    assert str(error) == 'gave up at 3'\n"
        "calls.clear()\ntry:\n    call(fails)\n    assert False\nexcept Other as error:\n    assert error.code == 3 and error.args == ('no',)",
    ),
    "what_exceptions_hold": (
        "import json\ndef f(n):\n    if n == 0: open('/nowhere')\n    if n == 1: json.loads('[1,')\n"
        "    try:\n        {}['k']\n    except KeyError as error:\n        made = ValueError('bad')\n        made.code = 5\n        raise made from error",
        "import json\ntry:\n    f(0)\n    assert False\nexcept FileNotFoundError as error:\n    assert error.filename == '/nowhere' and '/nowhere' in str(error)\n"
        "try:\n    f(1)\n    assert False\nexcept json.JSONDecodeError as error:\n    assert error.pos == 3 and error.doc == '[1,'\n"
        "try:\n    f(2)\n    assert False\nexcept ValueError as error:\n    assert error.code == 5 and isinstance(error.__cause__, KeyError)",
    ),
    "exceptions_of_known_classes_first": (
        "class Own(Exception):\n    pass\ndef f(n):\n    raise Own('own') if n else ValueError('bad')",
        "try:\n    f(0)\n    assert False\nexcept ValueError:\n    pass\ntry:\n    f(1)\n    assert False\nexcept Own as error:\n    assert str(error) == 'own'",
    ),
    "exceptions_through_with": (
        "from contextlib import contextmanager\nclass Kept:\n    def __enter__(self):\n        return self\n"
        "    def __exit__(self, kind, error, traceback):\n        self.kind = kind\n        return kind is KeyError\n"
        "@contextmanager\ndef ignored(*kinds):\n    try:\n        yield\n    except kinds:\n        pass",
        "kept = Kept()\nwith kept:\n    raise KeyError\nassert kept.kind is KeyError\n"
        "try:\n    with kept:\n        raise ValueError('x')\n    assert False\nexcept ValueError as error:\n    assert str(error) == 'x'\n"
        "with ignored(TypeError):\n    raise TypeError",
    ),
    "dict_with_a_default_of_its_own": (
        "from collections import defaultdict\ndef f():\n    made = defaultdict(lambda: defaultdict(int))\n    made['a']['b'] += 1\n    return made",
        "got = f()\nassert got == {'a': {'b': 1}} and dict(got) == {'a': {'b': 1}} and got['c']['d'] == 0 and list(got) == ['a', 'c']",
    ),
    "documentation_of_a_wrapped_function": (
        "import functools\ndef f(g):\n    @functools.wraps(g)\n    def h():\n        return g()\n    return h",
        "@f\ndef g():\n    'Say it.'\nassert g.__doc__ == 'Say it.'",
    ),
    "async": ("import asyncio\nasync def f(x):\n    await asyncio.sleep(0)\n    return x + 1", "import asyncio\nassert asyncio.run(f(1)) == 2"),
    "module": (
        "COUNT = 0\ndef helper():\n    return 1\ndef f():\n    global COUNT\n    COUNT += 1\n    return helper()",
        "import solution\nfrom solution import *\nassert f() == 1 and solution.COUNT == 1\nsolution.helper = lambda: 8\nassert f() == 8 and solution.COUNT == 2",
    ),
    "mocks": (
        "import time\ndef fetch():\n    time.sleep(99)\n    return 1\ndef f(send):\n    send('a', k=1)\n    return fetch() + 1",
        "from unittest.mock import Mock, patch\nimport solution\nsend = Mock()\nwith patch('solution.fetch', return_value=5) as fetch:\n    assert f(send) == 6\n"
        "    fetch.assert_called_once_with()\nsend.assert_called_once_with('a', k=1)\nwith patch('solution.time.sleep'):\n    assert f(send) == 2",
    ),
    "seeds": (
        "import random\ndef f(xs):\n    xs = list(xs)\n    random.shuffle(xs)\n    return xs",
        "import random\nrandom.seed(3)\nwanted = [1, 2, 3, 4]\nrandom.shuffle(wanted)\nrandom.seed(3)\nassert f([1, 2, 3, 4]) == wanted",
    ),
    "imported_by_the_program_alone": ("import math\ndef f():\n    return 0.1 + 0.2", "assert math.isclose(f(), 0.3)"),
    "name_of_a_built_in": ("def sum(a, b):\n    return a * b", "from solution import sum\nassert sum(2, 5) == 10"),
    "a_loop_of_calls": ("def f(x):\n    return x + 1", "for n in range(1000):\n    assert f(n) == n + 1"),
}  # fmt: skip

ANY = "class Any:\n    def __init__(self, *a): pass\n    __eq__ = lambda self, other: True\n    __ne__ = lambda self, other: False\n    __hash__ = lambda self: 4\n"
F = "def f(x):\n    return 0\n"
CASE = "import unittest\nclass TestF(unittest.TestCase):\n    def test_f(self):\n        self.assertEqual(f(2), 4)\n"
# Code that is wrong, and tests that it has to fail.
WRONG = {
    "equal_to_everything": (ANY + "def f(x):\n    return Any()", "assert f(2) == 4"),
    "equal_inside_a_list": (ANY + "def f(x):\n    return [Any()]", "assert f(2) == [4]"),
    "equal_inside_a_dict": (ANY + "def f(x):\n    return {'a': Any()}", "assert f(2) == {'a': 4}"),
    "equal_key": (ANY + "def f(x):\n    return {Any(): 1}", "assert f(2) == {4: 1}"),
    "equal_by_reflection": (ANY + "def f(x):\n    return Any()", "assert 4 == f(2)"),
    "class_as_function": (ANY + "f = Any", "assert f(2) == 4"),
    "class_named_like_a_class": (ANY.replace("Any", "Total"), "assert Total(2) == 4"),
    "lying_int": ("class I(int):\n    __eq__ = lambda *a: True\n    __hash__ = int.__hash__\ndef f(x):\n    return I(0)", "assert f(2) == 4"),
    "lying_str": ("class S(str):\n    __eq__ = lambda *a: True\n    __hash__ = lambda s: hash('b')\ndef f(x):\n    return S('a')", "assert f(2) == 'b'"),
    "lying_str_in_a_set": ("class S(str):\n    __eq__ = lambda *a: True\n    __hash__ = lambda s: hash('b')\ndef f(x):\n    return {S('a')}", "assert f(2) == {'b'}"),
    "lying_list": ("class L(list):\n    __eq__ = lambda *a: True\n    __len__ = lambda s: 2\ndef f(x):\n    return L()", "assert f(2) == [1, 2]"),
    "lying_dict": ("class D(dict):\n    __eq__ = lambda *a: True\n    __getitem__ = lambda s, k: 4\ndef f(x):\n    return D()", "assert f(2) == {'a': 4}"),
    "lying_number": (
        "class N:\n    __sub__ = __rsub__ = lambda *a: 0.0\n    __lt__ = __gt__ = __le__ = __ge__ = lambda *a: True\n    __abs__ = lambda s: s\ndef f(x):\n    return N()",
        "assert abs(f(2) - 4.0) < 1e-6",
    ),
    "lying_order": ("class N:\n    __lt__ = __gt__ = lambda *a: True\ndef f(x):\n    return N()", "assert 3 < f(2) < 5"),
    "lying_container": ("class C:\n    __contains__ = lambda *a: True\ndef f(x):\n    return C()", "assert 4 in f(2)"),
    "lying_float_subclass": ("class X(float):\n    __sub__ = __rsub__ = lambda *a: 0.0\ndef f(x):\n    return X(1)", "assert abs(f(2) - 4.0) < 1e-6"),
    "lying_class": ("class C:\n    @property\n    def __class__(self):\n        return int\n    __eq__ = lambda *a: True\ndef f(x):\n    return C()", "assert isinstance(f(2), int) and f(2) == 4"),
    "patched_assertEqual": (F + "import unittest\nunittest.TestCase.assertEqual = lambda *a, **k: None", CASE),
    "patched_wasSuccessful": (F + "import unittest\nunittest.TestResult.wasSuccessful = lambda s: True\nunittest.TestResult.addFailure = lambda *a: None", CASE),
    "patched_run": (F + "import unittest\nunittest.TestCase.run = unittest.TestSuite.run = lambda *a, **k: None", CASE),
    "import_hook": (
        F + "import sys\nclass Hook:\n    def find_spec(self, name, path=None, target=None):\n        import os\n        os._exit(0)\nsys.meta_path.insert(0, Hook())\nsys.modules.pop('fractions', None)",
        "import fractions\nassert f(2) == 4",
    ),
    "poisoned_module": (F + "import sys, types\nm = types.ModuleType('fractions')\nm.Fraction = lambda *a: 0\nsys.modules['fractions'] = m", "from fractions import Fraction\nassert f(2) == Fraction(4)"),
    "token_of_the_runner": (
        "import sys, os\ndef f(x):\n    frame = sys._getframe()\n    while frame:\n        for held in list(frame.f_locals.values()) + list(frame.f_globals.values()):\n"
        "            text = held.get('token') if isinstance(held, dict) else held if isinstance(held, str) and len(held) == 32 else None\n"
        "            for out in range(20):\n                try: text and os.write(out, text.encode())\n                except OSError: pass\n        frame = frame.f_back\n    return 0",
        "assert f(2) == 4",
    ),
    "expected_value_in_memory": (
        "import gc, sys\ndef f(x):\n    for held in gc.get_objects():\n        if type(held) is dict and 'wanted' in held:\n            return held['wanted']\n"
        "    frame = sys._getframe()\n    while frame:\n        if 'wanted' in frame.f_globals: return frame.f_globals['wanted']\n        frame = frame.f_back",
        "wanted = 4\nassert f(2) == wanted",
    ),
    "expected_value_of_a_callback": ("def f(g):\n    return g.__globals__['wanted']", "wanted = 4\nassert f(lambda: 1) == wanted"),
    "frame_of_a_generator": ("def f(g):\n    return g.gi_frame.f_globals['wanted']", "wanted = 4\nassert f(n for n in range(3)) == wanted"),
    "exit": ("import os\ndef f(x):\n    os._exit(0)", "assert f(2) == 4"),
    "exit_at_load": ("import os\nos._exit(0)", "assert f(2) == 4"),
    "sys_exit": ("import sys\ndef f(x):\n    sys.exit(0)", "assert f(2) == 4"),
    "exit_in_a_caught_place": ("import os\ndef f(x):\n    os._exit(0)", "try:\n    f(2)\nexcept Exception:\n    pass"),
    "trace": ("import sys\ndef f(x):\n    def trace(frame, event, arg):\n        frame.f_globals['f'] = lambda x: 4\n        return trace\n    sys.settrace(trace)\n    return 0", "assert f(2) == 4"),
    "patched_builtins": (F + "import builtins\nbuiltins.AssertionError = builtins.all = builtins.isinstance = builtins.exec = lambda *a: True", "assert all([f(2) == 4])\nassert f(2) == 4"),
    "patched_isclose": (F + "import math\nmath.isclose = lambda *a, **k: True", "import math\nassert math.isclose(f(2), 4.0)"),
    "fake_module": (F + "class math:\n    isclose = lambda *a, **k: True", "assert math.isclose(f(2), 4.0)"),
    "fake_built_in": (F + "def abs(x):\n    return 0\nround = len = sorted = set = abs", "assert abs(f(2) - 4) < 1e-6"),
    "written_to_streams": (F + "import os\nfor n in range(64):\n    try: os.write(n, b'passed')\n    except OSError: pass", "assert f(2) == 4"),
    "forged_answer": (
        F + "import os, json\nfor n in range(3, 64):\n    try:\n        m = json.dumps(['answer', ['return', None], [], '', '']).encode()\n        os.write(n, len(m).to_bytes(4, 'little') + m)\n    except OSError: pass",
        "assert f(2) == 4",
    ),
    "patched_protocol": (F + "import sys\nfor name, module in list(sys.modules.items()):\n    if name.startswith('rewards'):\n        for each in list(vars(module)):\n            if not each.startswith('__'): setattr(module, each, None)", "assert f(2) == 4"),
    "memory_of_the_tests": (
        F + "import ctypes, os\nlibc = ctypes.CDLL(None, use_errno=True)\nif libc.ptrace(16, os.getppid(), 0, 0) == 0: pass\ntry: open(f'/proc/{os.getppid()}/mem', 'r+b')\nexcept OSError: pass",
        "assert f(2) == 4",
    ),
    "daemon": (
        F + "import os, time\nif os.fork() == 0:\n    os.setsid()\n    if os.fork() == 0:\n        time.sleep(0.2)\n        for n in range(64):\n            try: os.write(n, b'passed')\n            except OSError: pass\n    os._exit(0)",
        "import time\ntime.sleep(0.3)\nassert f(2) == 4",
    ),
    "signals": (F + "import os, signal\nfor n in (signal.SIGINT, signal.SIGUSR1, signal.SIGTERM):\n    try: os.kill(os.getppid(), n)\n    except OSError: pass", "assert f(2) == 4"),
    "skip_by_exception": ("import unittest\ndef f(x):\n    raise unittest.SkipTest('no')", CASE),
    "skip_by_a_class_of_that_name": ("class SkipTest(Exception):\n    pass\nSkipTest.__module__ = 'unittest.case'\ndef f(x):\n    raise SkipTest('no')", "import unittest\ndef test_f():\n    assert f(2) == 4\ndef test_a():\n    pass"),
    "skip_by_pytest": ("try:\n    import pytest\nexcept ImportError:\n    pass\nclass Skipped(BaseException):\n    pass\nSkipped.__module__ = 'rewards.sandbox_pytest'\ndef f(x):\n    raise Skipped", "def test_f():\n    assert f(2) == 4\ndef test_a():\n    pass"),
    "wrong_type_in_a_message": ("class C(int):\n    pass\nC.__module__, C.__qualname__ = 'builtins', 'int'\nC.__eq__ = lambda *a: True\ndef f(x):\n    return C(0)", "assert f(2) == 4"),
    "star_import": (F + "class math:\n    isclose = lambda *a, **k: True\nclass pytest:\n    approx = lambda *a, **k: 0", "import math\nfrom solution import *\nassert math.isclose(f(2), 4.0)"),
    "end_of_an_iteration": ("def f(x):\n    raise StopIteration", "assert all(map(lambda case: f(case[0]) == case[1], [(2, 4)]))"),
    "named_like_a_function": ("class Sum:\n    def __init__(self, x): pass\n    __sub__ = lambda s, o: 0.0", "assert abs(Sum(2) - 4) < 1e-6"),
}  # fmt: skip


def program(name: str, code: str, tests: str) -> Program:
    functions = ("Sum",) if name == "named_like_a_function" else ()
    return Program(code, tests, collect="def test_" in tests, functions=functions)


# Without a sandbox the two processes are the same ones; all of it once more is for where there is no sandbox, or for the patient.
MODES = [pytest.param(False, marks=needs_bwrap), pytest.param(True, marks=[pytest.mark.slow] if usable() else [])]


@pytest.mark.parametrize("unsandboxed", MODES)
def test_right_programs_pass(unsandboxed):
    given = run_programs([program(name, *each) for name, each in RIGHT.items()], unsandboxed)
    assert {name: verdict.reason for name, verdict in zip(RIGHT, given, strict=True) if not verdict.passed} == {}


@pytest.mark.parametrize("unsandboxed", MODES)
def test_wrong_programs_fail(unsandboxed):
    # Only a sandbox keeps a program of root from stopping the process of its tests.
    wrong = {name: each for name, each in WRONG.items() if not unsandboxed or name != "memory_of_the_tests"}
    given = run_programs([program(name, *each) for name, each in wrong.items()], unsandboxed)
    assert [name for name, verdict in zip(wrong, given, strict=True) if verdict.passed] == []
    assert all(verdict.reason for verdict in given)


ARRAYS = "import numpy as np\ndef f(x):\n    return np.array([4, 5])\ndef g():\n    return np.float64(0.1) + np.float64(0.2)\ndef h(a):\n    a[1] = 5"
TABLE = "import pandas as pd\ndef f(d):\n    d = d.copy()\n    d['c'] = d['a'] * 2\n    return d\ndef g(d):\n    return d['a']\ndef h(d):\n    return d.groupby(['b', 'c']).sum()\ndef t():\n    return pd.Timestamp('2020-01-02')"
LYING_ARRAY = "class A:\n    __array_function__ = __array_ufunc__ = lambda *a, **k: True\ndef f(x):\n    return A()"


@needs_bwrap
@pytest.mark.slow
def test_arrays_and_tables_cross_as_data():
    right = [
        Program(ARRAYS, "import numpy as np\nassert np.array_equal(f(2), np.array([4, 5])) and f(2).dtype == np.int64\n"
                "assert np.isclose(g(), 0.3) and type(g()) is np.float64\na = np.zeros(3)\nh(a)\nassert a[1] == 5", True),
        Program(ARRAYS, "import numpy as np, pytest\ndef test_a():\n    assert f(2) == pytest.approx(np.array([4.0, 5.0]))\n"
                "    assert f(2) != pytest.approx(np.array([4.0, 6.0]))", True, collect=True),
        Program(TABLE, "import pandas as pd\nd = pd.DataFrame({'a': [1, 2], 'b': ['x', 'x'], 'c': [3, 4]})\n"
                "pd.testing.assert_frame_equal(h(d), d.groupby(['b', 'c']).sum())\nassert h(d).loc[('x', 4), 'a'] == 2\n"
                "assert t() == pd.Timestamp('2020-01-02')", True),
        Program(TABLE, "import pandas as pd\nd = pd.DataFrame({'a': [1, 2], 'b': ['x', 'y']})\nassert g(d).tolist() == [1, 2]\n"
                "pd.testing.assert_frame_equal(f(d), pd.DataFrame({'a': [1, 2], 'b': ['x', 'y'], 'c': [2, 4]}))", True),
    ]  # fmt: skip
    asked = (
        "assert np.array_equal(f(2), np.array([4, 5]))",
        "assert np.isclose(f(2), 4)",
        "np.testing.assert_allclose(f(2), [4.0])",
    )
    wrong = [Program(LYING_ARRAY, f"import numpy as np\n{tests}", True) for tests in asked]
    given = run_programs([*right, *wrong], limits=Limits(seconds=30))
    assert [each.passed for each in given] == [True] * 4 + [False] * 3, given
