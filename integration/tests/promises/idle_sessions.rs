//! Promise: connections to surviving nodes are not dropped when they are outside a transaction, and what they hold on the
//! server is made anew as far as it can be; others get 40001 or 57P01 with a reason.

use anyhow::{Context, bail, ensure};
use quorate_integration::cluster::{HEAL_LIMIT, Node};
use quorate_integration::sql::{End, sqlstate, tell};
use quorate_integration::{DEMO_DATABASE, Options, Session, nemesis, wait, with_cluster};
use std::time::Duration;
use tokio_postgres::Error;

const ANSWER_LIMIT: Duration = Duration::from_secs(45);

#[test]
fn sessions_without_state_outlive_a_postmaster_and_a_node() {
    with_cluster(Options::default(), async |cluster| {
        cluster.nodes()[0].app().session().await?.run("CREATE TABLE idle (id int)").await?;

        let view = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
        let parties = Party::at_each(cluster.nodes()).await?;
        // Idle at the loss means idle until the backend has ended; what is asked while it dies is in flight, and
        // `lose_postmaster` asks without a pause.
        let lost = view.primary()?.node.clone();
        nemesis::kill_postmaster(view.primary()?)?;
        cluster.failed_over(DEMO_DATABASE, &lost, ANSWER_LIMIT).await?;
        for party in parties {
            party.judge().await.context("after the loss of the primary's postmaster")?;
        }

        let view = cluster.whole(DEMO_DATABASE, 3, HEAL_LIMIT).await?;
        let lost = view.primary()?.node.clone();
        let parties = Party::at_each(&cluster.others(&lost)).await?;
        nemesis::kill_node(cluster, &lost)?;
        cluster.failed_over(DEMO_DATABASE, &lost, ANSWER_LIMIT).await?;
        for party in parties {
            party.judge().await.context("after the loss of the primary's node")?;
        }
        let count =
            cluster.others(&lost)[0].app().session().await?.value("SELECT count(*) FROM idle").await?;
        ensure!(count.as_deref() == Some("0"), "{count:?} rows of transactions that never committed");
        Ok(())
    });
}

/// Sessions at one node, each with something else to lose.
struct Party {
    node: String,
    simple: Session,
    extended: Session,
    former_transaction: Session,
    transaction: Session,
    temporary: Session,
    prepared: Session,
}

impl Party {
    async fn at_each(nodes: &[Node]) -> anyhow::Result<Vec<Party>> {
        let mut parties = Vec::new();
        for node in nodes {
            parties.push(Party::at(node).await.with_context(|| node.name.clone())?);
        }
        Ok(parties)
    }

    async fn at(node: &Node) -> anyhow::Result<Party> {
        let port = node.app();
        let party = Party {
            node: node.name.clone(),
            simple: port.session().await?,
            extended: port.session().await?,
            former_transaction: port.session().await?,
            transaction: port.session().await?,
            temporary: port.session().await?,
            prepared: port.session().await?,
        };
        party.simple.value("SELECT 1").await?;
        party.extended.client.query_typed("SELECT 1", &[]).await?;
        party.former_transaction.run("BEGIN; INSERT INTO idle VALUES (1); ROLLBACK").await?;
        party.transaction.run("BEGIN").await?;
        party.transaction.run("INSERT INTO idle VALUES (2)").await?;
        party.temporary.run("CREATE TEMP TABLE mine (id int)").await?;
        party
            .prepared
            .run("PREPARE mine AS SELECT current_setting('work_mem') || current_setting('app.who')")
            .await?;
        party.prepared.run("SET work_mem = '7MB'; SET app.who = 'me'").await?;
        // It is known of to the node once the node has asked the server for it.
        let pid = party.prepared.value("SELECT pg_backend_pid()").await?.context("a pid")?;
        let asked = format!(
            "SELECT count(*) FROM pg_stat_activity WHERE pid = {pid} AND query LIKE '%pg_listening_channels%'"
        );
        party.prepared.run("SET app.who = 'me'").await?;
        wait::until("the session's server is asked what it holds", ANSWER_LIMIT, async || {
            let count = party.simple.value(&asked).await?;
            Ok(if count.as_deref() == Some("1") { Ok(()) } else { Err(count) })
        })
        .await?;
        Ok(party)
    }

    async fn judge(self) -> anyhow::Result<()> {
        let node = self.node;
        for (what, session) in [
            ("simple", &self.simple),
            ("extended", &self.extended),
            ("after a transaction", &self.former_transaction),
        ] {
            let told = tokio::time::timeout(ANSWER_LIMIT, session.value("SELECT 2")).await;
            match told.with_context(|| format!("{node}, {what}: no answer within {ANSWER_LIMIT:?}"))? {
                Ok(value) => ensure!(value.as_deref() == Some("2"), "{node}, {what}: {value:?}"),
                Err(error) => bail!(
                    "{node}, idle session ({what}) was dropped: {}; end {:?}",
                    tell(&error),
                    session.end()
                ),
            }
        }
        told(&node, "in a transaction", &self.transaction, &["40001"]).await?;
        told(&node, "with a temporary table", &self.temporary, &["57P01"]).await?;
        let made = tokio::time::timeout(ANSWER_LIMIT, self.prepared.value("EXECUTE mine")).await;
        let made = made.with_context(|| format!("{node}, prepared: no answer"))?;
        ensure!(
            made.is_ok_and(|v| v.as_deref() == Some("7MBme")),
            "{node}: a statement and settings were lost"
        );
        Ok(())
    }
}

/// The session is told one of `expected` with a reason: at its next question, or as its last word.
async fn told(node: &str, what: &str, session: &Session, expected: &[&str]) -> anyhow::Result<()> {
    let answer = tokio::time::timeout(ANSWER_LIMIT, session.value("SELECT 3")).await;
    let answer: Result<_, Error> = answer.with_context(|| format!("{node}, {what}: no answer"))?;
    let error = match answer {
        Ok(value) => bail!("{node}, {what}: answered {value:?} as if nothing had happened"),
        Err(error) => error,
    };
    let End { code, text } = match sqlstate(&error) {
        Some(_) => End::from(&error),
        None => session.wait_end(Duration::from_secs(5)).await?,
    };
    let code = code.with_context(|| format!("{node}, {what}: ended without a word: {text}"))?;
    ensure!(expected.contains(&code.as_str()), "{node}, {what}: expected {expected:?}, got {text}");
    ensure!(text.len() > code.len() + 20, "{node}, {what}: no reason in {text:?}");
    eprintln!("{node}, {what}: {text}");
    Ok(())
}
