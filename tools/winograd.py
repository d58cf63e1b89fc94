"""Write csrc/winograd_transforms.inc: the one-dimensional transforms of Winograd's convolution.

    python tools/winograd.py > convkern/_kernels/csrc/winograd_transforms.inc

A correlation of n = m + r - 1 samples d with r taps g has m outputs.  It is a product of
polynomials, found from its values at n - 1 points and at infinity (Cook and Toom; Winograd
1980):

    y = A^T [(G g) * (B^T d)]

with n products instead of m * r.  Two-dimensional windows apply each transform to rows and
columns.

With a stride of 2 and three taps, the outputs are the sum of two such correlations: of the even
samples with the outer taps, and of the odd samples with the middle tap, whose n - outputs - 1
products need no transform.

The points decide the rounding errors: small fractions of different sizes do best
(Barabasz et al., "Error Analysis and Improving the Accuracy of Winograd Convolution for Deep
Neural Networks", 2020); those below were compared by the error of sums over 192 channels.

Everything is computed in exact fractions, and `check` proves each triple of matrices on every
product of unit vectors before it is written.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction
from itertools import product

Matrix = list[list[Fraction]]

HALF = Fraction(1, 2)
#: Points for each number of products n; infinity is always the last.
POINTS: dict[int, list[Fraction]] = {
    3: [Fraction(p) for p in (0, 1)],
    4: [Fraction(p) for p in (0, 1, -1)],
    6: [Fraction(p) for p in (0, 1, -1, HALF, -2)],
    7: [Fraction(p) for p in (0, 1, -1, HALF, -HALF, -2)],
    8: [Fraction(p) for p in (0, 1, -1, HALF, -HALF, 2, -2)],
}
#: The tiles (m, r): outputs per tile and taps of the window.
TILES = ((2, 3), (4, 3), (5, 3), (3, 4), (4, 4), (5, 4), (2, 5), (3, 5), (4, 5))
#: Outputs of a tile of three taps with a stride of 2.
STRIDED = 2


def powers(n: int, length: int) -> Matrix:
    """Return the matrix that evaluates a polynomial of `length` coefficients at the points."""
    rows = [[point**j for j in range(length)] for point in POINTS[n]]
    return [*rows, [Fraction(j == length - 1) for j in range(length)]]


def multiply(a: Sequence[Fraction], b: Sequence[Fraction]) -> list[Fraction]:
    """Multiply two polynomials."""
    result = [Fraction(0)] * (len(a) + len(b) - 1)
    for (i, x), (j, y) in product(enumerate(a), enumerate(b)):
        result[i + j] += x * y
    return result


def through(points: Sequence[Fraction]) -> list[Fraction]:
    """Return the polynomial with these roots."""
    result = [Fraction(1)]
    for point in points:
        result = multiply(result, [-point, Fraction(1)])
    return result


def scales(n: int) -> list[Fraction]:
    """Return 1 / (the product of a point's distances to the others), and 1 for infinity."""
    points = POINTS[n]
    return [1 / math.prod((p - q for q in points if q != p), start=Fraction(1)) for p in points] + [
        Fraction(1)
    ]


def input_matrix(n: int) -> Matrix:
    """Return B^T, n x n: of each point the polynomial whose roots are the others."""
    points = POINTS[n]
    rows = [[*through([q for q in points if q != p]), Fraction(0)] for p in points]
    return [*rows, through(points)]


def filter_matrix(n: int, taps: int) -> Matrix:
    """Return G, n x taps."""
    rows = zip(powers(n, taps), scales(n), strict=True)
    return [[value * scale for value in row] for row, scale in rows]


def output_matrix(n: int, outputs: int) -> Matrix:
    """Return A^T, outputs x n."""
    return [list(column) for column in zip(*powers(n, outputs), strict=True)]


def scaled_output_matrix(n: int, outputs: int) -> Matrix:
    """Return A^T for elements that lack the scales of G.

    The sums of a weight's gradient, whose filters change with every tile and its outputs do not.
    """
    return [
        [value * scale for value, scale in zip(row, scales(n), strict=True)]
        for row in output_matrix(n, outputs)
    ]


def check(outputs: int, taps: int) -> None:
    """Prove y = A^T [(G g) * (B^T d)] for every pair of unit vectors, hence for all."""
    n = outputs + taps - 1
    A, G, B = output_matrix(n, outputs), filter_matrix(n, taps), input_matrix(n)
    for i, t, d in product(range(outputs), range(taps), range(n)):
        y = sum(A[i][e] * G[e][t] * B[e][d] for e in range(n))
        assert y == (i + t == d), (outputs, taps, i, t, d)
    scaled, values = scaled_output_matrix(n, outputs), powers(n, taps)
    for i, t, d in product(range(outputs), range(taps), range(n)):
        y = sum(scaled[i][e] * values[e][t] * B[e][d] for e in range(n))
        assert y == (i + t == d), (outputs, taps, i, t, d)


def strided_matrices(outputs: int) -> tuple[Matrix, Matrix, Matrix]:
    """Return A^T, G and B^T of three taps with a stride of 2: even samples first, then odd ones."""
    n = outputs + 1
    zero, one = Fraction(0), Fraction(1)
    A = [
        [*row, *(one if i == j else zero for j in range(outputs))]
        for i, row in enumerate(output_matrix(n, outputs))
    ]
    G = [[outer, zero, last] for outer, last in filter_matrix(n, 2)]
    G += [[zero, one, zero]] * outputs
    B = [
        [row[d // 2] if d % 2 == 0 else zero for d in range(2 * outputs + 1)]
        for row in input_matrix(n)
    ]
    B += [[one if d == 2 * j + 1 else zero for d in range(2 * outputs + 1)] for j in range(outputs)]
    return A, G, B


def check_strided(outputs: int) -> None:
    """Prove the same for a stride of 2."""
    A, G, B = strided_matrices(outputs)
    n = 2 * outputs + 1
    for i, t, d in product(range(outputs), range(3), range(n)):
        y = sum(A[i][e] * G[e][t] * B[e][d] for e in range(n))
        assert y == (2 * i + t == d), (outputs, i, t, d)


# ---------------------------------------------------------------- code


def literal(value: Fraction) -> str:
    """Return a constant in C."""
    text = f"{value.numerator}.0" + (f" / {value.denominator}" if value.denominator > 1 else "")
    return f"K({text})"


def combination(names: Sequence[str], coefficients: Sequence[Fraction]) -> str:
    """Return the expression of a linear combination: sums first, then multiply-adds."""
    terms = [(name, c) for name, c in zip(names, coefficients, strict=True) if c]
    terms.sort(key=lambda term: abs(term[1]) != 1)
    if not terms:
        return "(vec){0}"
    (name, c), *rest = terms
    text = {1: name, -1: f"-{name}"}.get(c) or f"{literal(c)} * {name}"
    for name, c in rest:
        if abs(c) == 1:
            text = f"{text} {'+' if c > 0 else '-'} {name}"
        else:
            text = f"v_fma({literal(c)}, {name}, {text})"
    return text


def pair_of(
    rows: Matrix, i: int, left: list[int]
) -> tuple[int, list[Fraction], list[Fraction]] | None:
    """Find a row that is e - o where row `i` is e + o, with e and o sharing no column."""
    for j in left:
        even = [(a + b) / 2 for a, b in zip(rows[i], rows[j], strict=True)]
        odd = [(a - b) / 2 for a, b in zip(rows[i], rows[j], strict=True)]
        if any(even) and any(odd) and not any(a and b for a, b in zip(even, odd, strict=True)):
            return j, even, odd
    return None


def by_rows(matrix: Matrix) -> list[str]:
    """Return statements for y = M x; the rows of points p and -p share their halves."""
    names = [f"x[{j}]" for j in range(len(matrix[0]))]
    lines, left = [], list(range(len(matrix)))
    while left:
        i = left.pop(0)
        found = pair_of(matrix, i, left)
        if found is None:
            lines.append(f"y[{i}] = {combination(names, matrix[i])};")
            continue
        j, even, odd = found
        left.remove(j)
        lines += [
            f"const vec e{i} = {combination(names, even)};",
            f"const vec o{i} = {combination(names, odd)};",
            f"y[{i}] = e{i} + o{i};",
            f"y[{j}] = e{i} - o{i};",
        ]
    return lines


def by_columns(matrix: Matrix) -> list[str]:
    """Return statements for y = M x; the columns of points p and -p enter as sum and difference."""
    columns: Matrix = [list(column) for column in zip(*matrix, strict=True)]
    lines, names, used, left = [], [], [], list(range(len(columns)))
    while left:
        i = left.pop(0)
        column = columns[i]
        mirror = [-c if row % 2 else c for row, c in enumerate(column)]
        twin = next((j for j in left if columns[j] == mirror), None) if any(column[1:]) else None
        if twin is None:
            names.append(f"x[{i}]")
            used.append(column)
            continue
        left.remove(twin)
        lines += [f"const vec s{i} = x[{i}] + x[{twin}];", f"const vec d{i} = x[{i}] - x[{twin}];"]
        names += [f"s{i}", f"d{i}"]
        used.append([Fraction(0) if row % 2 else c for row, c in enumerate(column)])
        used.append([c if row % 2 else Fraction(0) for row, c in enumerate(column)])
    for row in range(len(matrix)):
        lines.append(f"y[{row}] = {combination(names, [column[row] for column in used])};")
    return lines


class Program:
    """Statements that compute vectors from x[0], x[1] ..., and what each of them is of these."""

    def __init__(self, length: int) -> None:
        self.lines: list[str] = []
        self.rows = {f"x[{j}]": [Fraction(i == j) for i in range(length)] for j in range(length)}

    def add(self, name: str, terms: dict[str, Fraction]) -> str:
        """Add the statement that gives a linear combination of earlier vectors this name."""
        self.lines.append(
            f"{'' if '[' in name else 'const vec '}{name} = "
            f"{combination(list(terms), list(terms.values()))};"
        )
        self.rows[name] = [
            sum((c * self.rows[term][j] for term, c in terms.items()), Fraction(0))
            for j in range(len(self.rows["x[0]"]))
        ]
        return name

    def filtered(
        self, name: str, polynomial: Sequence[Fraction], source: Sequence[str], places: range
    ) -> dict[int, str]:
        """Apply a polynomial's coefficients to neighbours in `source`, from these places on."""
        if len(polynomial) == 1:
            return {place: source[place] for place in places}
        return {
            place: self.add(f"{name}{place}", dict(zip(source[place:], polynomial, strict=False)))
            for place in places
        }

    def prove(self, matrix: Matrix) -> list[str]:
        """Return the statements, if y = M x."""
        for i, row in enumerate(matrix):
            assert self.rows[f"y[{i}]"] == row, (i, row)
        return self.lines


def by_factors(n: int) -> list[str]:
    """Return statements for y = B^T x, whose polynomials share factors.

    The points p and q have the polynomials x (x - q) R and x (x - p) R: two neighbours that R was
    applied to give both.  Of 1 and -1, four neighbours also give the polynomials of 0 and of
    infinity, (x - 1) (x + 1) R and x times that.
    """
    points, matrix = POINTS[n], input_matrix(n)
    program, left = Program(n), points[1:]
    source = [f"x[{j}]" for j in range(n)]
    if len(left) % 2:  # the last one is by itself, and a factor of all others
        program.add(f"y[{len(left)}]", dict(zip(source, matrix[len(left)], strict=True)))
        source = [*program.filtered("h", through([left[-1]]), source, range(n - 1)).values()]
        left = left[:-1]
    for i in range(0, len(left), 2):
        p, q = left[i : i + 2]
        rest = through([r for r in left if r not in (p, q)])
        f = program.filtered(f"f{i}", rest, source, range(4) if i == 0 else range(1, 3))
        program.add(f"y[{i + 1}]", {f[2]: Fraction(1), f[1]: -q})
        program.add(f"y[{i + 2}]", {f[2]: Fraction(1), f[1]: -p})
        if i == 0:
            assert p == -q
            program.add("y[0]", {f[2]: Fraction(1), f[0]: p * q})
            program.add(f"y[{n - 1}]", {f[3]: Fraction(1), f[1]: p * q})
    return program.prove(matrix)


def by_values(n: int, length: int) -> list[str]:
    """Return statements for the values of a polynomial at the points, by Horner's rule.

    The points p and -p share those of the even and of the odd coefficients.
    """
    program, points = Program(length), POINTS[n]

    def value(name: str, coefficients: Sequence[str], point: Fraction) -> str:
        """Evaluate a polynomial."""
        *rest, result = coefficients
        for i, coefficient in reversed([*enumerate(rest)]):
            result = program.add(f"{name}{i}", {coefficient: Fraction(1), result: point})
        return result

    x = [f"x[{j}]" for j in range(length)]
    program.add("y[0]", {x[0]: Fraction(1)})
    i = 1
    while i < n - 1:
        point = points[i]
        if point == -points[i + 1 - (i == n - 2)]:
            even, odd = value(f"e{i}", x[::2], point**2), value(f"o{i}", x[1::2], point**2)
            program.add(f"y[{i}]", {even: Fraction(1), odd: point})
            program.add(f"y[{i + 1}]", {even: Fraction(1), odd: -point})
            i += 2
        else:
            last = value(f"v{i}", x[1:], point)
            program.add(f"y[{i}]", {x[0]: Fraction(1), last: point})
            i += 1
    program.add(f"y[{n - 1}]", {x[-1]: Fraction(1)})
    return program.prove(powers(n, length))


def function(name: str, lines: Sequence[str]) -> str:
    """Return a C function from x to y."""
    body = "\n".join(f"    {line}" for line in lines)
    return f"CK_INLINE void {name}(const vec *x, vec *y)\n{{\n{body}\n}}\n"


def source() -> str:
    """Return the whole file."""
    parts = [
        "/* Written by tools/winograd.py, where the formulas stand.  Included by winograd.inc. */\n"
    ]
    for tile in TILES:
        check(*tile)
        check(*tile[::-1])
    lengths = {(m + r - 1, length) for m, r in TILES for length in (m, r)}
    check_strided(STRIDED)
    for n in sorted({m + r - 1 for m, r in TILES}):
        parts.append(function(f"winograd_input_{n}", by_factors(n)))
    for n, length in sorted(lengths):
        parts.append(function(f"winograd_filter_{n}_{length}", by_rows(filter_matrix(n, length))))
        parts.append(
            function(f"winograd_output_{n}_{length}", by_columns(output_matrix(n, length)))
        )
    for m, r in TILES:  # of the gradient of a weight
        n = m + r - 1
        parts.append(function(f"winograd_values_{n}_{m}", by_values(n, m)))
        scaled = by_columns(scaled_output_matrix(n, r))
        parts.append(function(f"winograd_scaled_output_{n}_{r}", scaled))
    A, G, B = strided_matrices(STRIDED)
    parts.append(function("winograd_input_strided", by_rows(B)))
    parts.append(function("winograd_filter_strided", by_rows(G)))
    parts.append(function("winograd_output_strided", by_columns(A)))
    tiles = " ".join(f"X({m}, {r}, {m + r - 1})" for m, r in TILES)
    strided = f"X({STRIDED}, 3, {2 * STRIDED + 1})"
    parts.append(
        f"/* (outputs, taps, elements) of each tile */\n#define CK_WINOGRAD_TILES(X) {tiles}\n"
        "/* the same with a stride of 2 */\n"
        f"#define CK_WINOGRAD_STRIDED(X) {strided}\n"
    )
    return "\n".join(parts)


if __name__ == "__main__":
    print(source(), end="")
