// Calls, hash maps, sorting and strings, for ever, in two threads.
import java.util.ArrayList;
import java.util.Collections;
import java.util.HashMap;

public class Work {
    static int fib(int n) {
        return n < 2 ? n : fib(n - 1) + fib(n - 2);
    }

    static int count() {
        HashMap<String, Integer> counts = new HashMap<>();
        for (int i = 0; i < 20_000; i++) {
            counts.merge("word" + i % 997, 1, Integer::sum);
        }
        ArrayList<String> words = new ArrayList<>(counts.keySet());
        Collections.sort(words, (a, b) -> counts.get(a).equals(counts.get(b)) ? a.compareTo(b) : counts.get(b) - counts.get(a));
        return words.size();
    }

    static double matrix(int size) {
        double[][] a = new double[size][size], b = new double[size][size];
        double sum = 0;
        for (int i = 0; i < size; i++) {
            for (int j = 0; j < size; j++) {
                a[i][j] = i + j;
                b[i][j] = i - j;
            }
        }
        for (int i = 0; i < size; i++) {
            for (int j = 0; j < size; j++) {
                for (int k = 0; k < size; k++) {
                    sum += a[i][k] * b[k][j];
                }
            }
        }
        return sum;
    }

    static void work() {
        for (;;) {
            if (fib(24) + count() + matrix(100) == 0.5) {
                return;
            }
        }
    }

    public static void main(String[] arguments) {
        new Thread(Work::work).start();
        work();
    }
}
