// Functions of JavaScript, JSON, regular expressions and a sort, for ever.
function fib(n) {
  return n < 2 ? n : fib(n - 1) + fib(n - 2);
}

function mandelbrot(size) {
  let inside = 0;
  for (let y = 0; y < size; y++) {
    for (let x = 0; x < size; x++) {
      let [a, b, i] = [0, 0, 0];
      while (i < 50 && a * a + b * b < 4) {
        [a, b] = [a * a - b * b + (2 * x) / size - 1.5, 2 * a * b + (2 * y) / size - 1];
        i++;
      }
      inside += i === 50 ? 1 : 0;
    }
  }
  return inside;
}

function documents() {
  const items = Array.from({ length: 500 }, (_, i) => ({ name: `n${(i * 7919) % 500}`, values: [i, i / 2] }));
  const copy = JSON.parse(JSON.stringify(items));
  return copy.sort((a, b) => a.name.localeCompare(b.name)).map((item) => item.name.replace(/(\d)(\d)/g, "$2$1"));
}

for (;;) {
  fib(22);
  mandelbrot(60);
  documents();
}
