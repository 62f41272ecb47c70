import jakarta.jms.*;
import java.nio.charset.StandardCharsets;
import java.nio.file.*;
import java.util.*;

/**
 * Prints Koji's messages as they arrive: a start for a JMS consumer of your own, see docs/consumers.md.
 *
 * java -cp 'lib/*' Consumer.java --client activemq --url 'failover:(ssl://broker.example.com:61617)' \
 *     --user koji --password-file password --topic 'koji.build.*' --selector "type = 'Tag' AND tag LIKE 'f39%'"
 *
 * It acknowledges a message after handle() has returned, and passes over one that it has seen already. It needs
 * Java 17 and a client on the class path: that of ActiveMQ (OpenWire), of Artemis, or Qpid's (AMQP 1.0).
 */
class Consumer {
    static final int REMEMBERED = 10000; // message-ids; most repeats come within minutes of the first time

    static final Map<String, String> options = new HashMap<>();

    /** Is where your own work goes. Finish it before you return: the broker then forgets the message. */
    static void handle(String id, Message message, String body) throws JMSException {
        List<String> line = new ArrayList<>();
        for (Enumeration<?> names = message.getPropertyNames(); names.hasMoreElements();) {
            String name = (String) names.nextElement();
            if (!name.startsWith("JMS")) { // those are the broker's
                Object value = message.getObjectProperty(name);
                line.add(quote(name) + ": " + (value instanceof String ? quote((String) value) : value));
            }
        }
        System.out.printf("{\"message_id\": %s, \"props\": {%s}, \"body\": %s}%n", quote(id),
            String.join(", ", line), quote(body));
    }

    static ConnectionFactory factory(String client, String url) throws JMSException {
        return switch (client) {
            case "activemq" -> new org.apache.activemq.ActiveMQConnectionFactory(url);
            case "qpid" -> new org.apache.qpid.jms.JmsConnectionFactory(url);
            case "artemis" -> new org.apache.activemq.artemis.jms.client.ActiveMQConnectionFactory(url);
            default -> throw new IllegalArgumentException("--client is activemq, artemis or qpid, not " + client);
        };
    }

    /** The message-id that the relay set. The clients put different things in front of it. */
    static String id(Message message) throws JMSException {
        String id = message.getStringProperty("NATIVE_MESSAGE_ID"); // by Artemis' own client
        if (id == null) {
            id = message.getJMSMessageID();
        }
        return id == null ? null : id.replaceFirst("^ID:(AMQP_NO_PREFIX:)?", "");
    }

    static String text(Message message) throws JMSException {
        if (message instanceof TextMessage text) {
            return text.getText();
        }
        BytesMessage bytes = (BytesMessage) message; // with [message] body_section = data
        byte[] body = new byte[(int) bytes.getBodyLength()];
        bytes.readBytes(body);
        return new String(body, StandardCharsets.UTF_8);
    }

    public static void main(String[] args) throws Exception {
        for (int i = 0; i + 1 < args.length; i += 2) {
            options.put(args[i].substring(2), args[i + 1]);
        }
        Set<String> seen = Collections.newSetFromMap(new LinkedHashMap<>() {
            @Override
            protected boolean removeEldestEntry(Map.Entry<String, Boolean> eldest) {
                return size() > REMEMBERED;
            }
        });
        String password = Files.readString(Path.of(options.get("password-file"))).strip();
        String durable = options.get("durable"), selector = options.get("selector");
        Connection connection = factory(options.get("client"), options.get("url"))
            .createConnection(options.get("user"), password);
        if (durable != null) {
            connection.setClientID(durable); // a durable subscription is known by both names
        }
        Session session = connection.createSession(false, Session.CLIENT_ACKNOWLEDGE);
        MessageConsumer consumer;
        if (options.containsKey("queue")) { // such as a virtual topic's
            consumer = session.createConsumer(session.createQueue(options.get("queue")), selector);
        } else {
            Topic topic = session.createTopic(options.get("topic"));
            consumer = durable == null ? session.createConsumer(topic, selector)
                : session.createDurableSubscriber(topic, durable, selector, false);
        }
        connection.start();
        System.err.println("subscribed to " + options.getOrDefault("topic", options.get("queue")));

        int count = Integer.parseInt(options.getOrDefault("count", "0"));
        for (int handled = 0; count == 0 || handled < count;) {
            Message message = consumer.receive();
            String id = id(message);
            if (id == null || !seen.contains(id)) {
                handle(id, message, text(message));
                seen.add(id);
                handled++;
            }
            message.acknowledge();
        }
        connection.close();
    }

    static String quote(String s) {
        StringBuilder out = new StringBuilder("\"");
        for (char c : s.toCharArray()) {
            out.append(c == '"' || c == '\\' ? "\\" + c : c < ' ' ? String.format("\\u%04x", (int) c) : "" + c);
        }
        return out.append('"').toString();
    }
}
