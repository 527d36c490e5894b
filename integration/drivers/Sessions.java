import java.net.URI;
import java.nio.file.Files;
import java.nio.file.Path;
import java.sql.Connection;
import java.sql.DriverManager;
import java.sql.PreparedStatement;
import java.sql.ResultSet;
import java.sql.SQLException;
import java.util.ArrayList;
import java.util.List;
import java.util.Map;
import java.util.TreeMap;

/**
 * Sessions by JDBC, as those of sessions.py: java -cp postgresql.jar Sessions.java URL FILE
 *
 * <p>Statements that are used five times get a name at the server, as is the driver's default.
 */
public class Sessions {
    static final int SESSIONS = 4;
    static final long PAUSE_MS = 80;

    static int begun, alive, turns, written;
    static final Map<String, Integer> errors = new TreeMap<>(), inBlocks = new TreeMap<>();
    static final List<Throwable> failures = new ArrayList<>();

    static synchronized void failed(Map<String, Integer> where, SQLException error) {
        String code = error.getSQLState() == null ? error.toString() : error.getSQLState();
        // The driver's own word for a connection that ended; by itself it says little.
        where.merge(code.startsWith("08") && !code.equals("08007") ? code + ": " + error.getMessage() : code, 1, Integer::sum);
    }

    static void expect(Object expected, Object found) {
        if (!expected.equals(found)) {
            throw new AssertionError(expected + " was expected, and " + found + " was found");
        }
    }

    static Object first(PreparedStatement statement, int... values) throws SQLException {
        for (int i = 0; i < values.length; i++) {
            statement.setInt(i + 1, values[i]);
        }
        try (ResultSet rows = statement.executeQuery()) {
            rows.next();
            return rows.getObject(1);
        }
    }

    static void write(PreparedStatement statement, int number, int turn, String step) throws SQLException {
        statement.setInt(1, number);
        statement.setInt(2, turn);
        statement.setString(3, step);
        statement.executeUpdate();
    }

    static void session(String url, String user, String password, Path stop, int number) throws Exception {
        String who = "JDBC" + number;
        Connection connection = DriverManager.getConnection(url, user, password);
        connection.createStatement().execute("SET work_mem = '7MB'");
        connection.createStatement().execute("SET app.who = '" + who + "'");
        PreparedStatement state =
            connection.prepareStatement("SELECT current_setting('work_mem') || ' ' || current_setting('app.who')");
        PreparedStatement plus = connection.prepareStatement("SELECT ?::int + 1");
        PreparedStatement write = connection.prepareStatement("INSERT INTO turns VALUES ('JDBC', ?, ?, ?)");
        PreparedStatement rows = connection.prepareStatement(
            "SELECT count(*)::int FROM turns WHERE (driver, session, turn) = ('JDBC', ?, ?)");
        synchronized (Sessions.class) { begun++; }
        for (int turn = 1; !Files.exists(stop); turn++) {
            Thread.sleep(PAUSE_MS);
            Map<String, Integer> where = errors;
            try {
                expect("7MB " + who, first(state));
                expect(number + 1, first(plus, number));
                write(write, number, turn, "alone");
                synchronized (Sessions.class) { written++; }
                where = inBlocks;
                connection.setAutoCommit(false);
                write(write, number, turn, "in a block");
                expect(2, first(rows, number, turn));
                connection.commit();
                connection.setAutoCommit(true);
                synchronized (Sessions.class) { written++; turns++; }
            } catch (SQLException error) {
                failed(where, error);
                if (connection.isClosed()) {
                    return;
                }
                if (!connection.getAutoCommit()) {
                    connection.rollback();
                    connection.setAutoCommit(true);
                }
            }
        }
        synchronized (Sessions.class) { alive++; }
    }

    static String json(Map<String, Integer> counts) {
        List<String> pairs = new ArrayList<>();
        counts.forEach((code, count) -> pairs.add("\"" + code.replaceAll("[\"\\\\\\s]+", " ") + "\": " + count));
        return "{" + String.join(", ", pairs) + "}";
    }

    public static void main(String[] arguments) throws Exception {
        URI given = new URI(arguments[0]);
        String url = "jdbc:postgresql://" + given.getHost() + ":" + given.getPort() + given.getPath();
        String[] login = given.getUserInfo().split(":");
        List<Thread> threads = new ArrayList<>();
        for (int i = 0; i < SESSIONS; i++) {
            int number = i;
            threads.add(new Thread(() -> {
                try {
                    session(url, login[0], login[1], Path.of(arguments[1]), number);
                } catch (Throwable failure) {
                    synchronized (Sessions.class) { failures.add(failure); }
                }
            }));
        }
        threads.forEach(Thread::start);
        for (Thread thread : threads) {
            thread.join();
        }
        System.out.printf(
            "{\"JDBC\": {\"begun\": %d, \"alive\": %d, \"turns\": %d, \"written\": %d, \"errors\": %s, \"in_blocks\": %s}}%n",
            begun, alive, turns, written, json(errors), json(inBlocks));
        if (!failures.isEmpty()) {
            failures.forEach(Throwable::printStackTrace);
            System.exit(1);
        }
    }
}
