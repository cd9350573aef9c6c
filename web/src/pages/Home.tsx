import { Anchor, Grid, SimpleGrid, Stack, Text, Title } from '@mantine/core'
import { useQuery } from '@tanstack/react-query'
import type { ReactNode } from 'react'
import { kfp, registry, ui } from '../api'
import { Command, Empty, Fact, PageTitle, Problem, Waiting } from '../Parts'
import { FIRST_RUN, RunTable } from './Runs'

function Count({ href, name, value, detail }: { href: string; name: string; value: ReactNode; detail: string }) {
  return (
    <a href={href} className="surface" style={{ color: 'inherit', textDecoration: 'none', padding: '14px 18px' }}>
      <Text size="sm" c="dimmed">{name}</Text>
      <Text fz={28} fw={650} lh={1.3} style={{ fontVariantNumeric: 'tabular-nums' }}>{value}</Text>
      <Text size="xs" c="dimmed">{detail}</Text>
    </a>
  )
}

/** What is there and what is going on; on an empty platform, what to do first. */
export function Home() {
  const overview = useQuery({ queryKey: ['overview'], queryFn: ui.overview, refetchInterval: 10_000 })
  const recent = useQuery({ queryKey: ['runs', 'recent'], queryFn: () => kfp.runs({ size: 6 }), refetchInterval: 3000 })
  const running = useQuery({ queryKey: ['runs', 'running'], queryFn: () => kfp.runs({ size: 1, state: 'RUNNING' }), refetchInterval: 3000 })
  const failed = useQuery({ queryKey: ['runs', 'failed'], queryFn: () => kfp.runs({ size: 1, state: 'FAILED' }), refetchInterval: 5000 })
  const models = useQuery({ queryKey: ['models'], queryFn: registry.models })
  const facts = overview.data
  return (
    <>
      <PageTitle>Home</PageTitle>
      {(overview.error ?? recent.error) && <Problem error={(overview.error ?? recent.error)!} />}
      <SimpleGrid cols={{ base: 2, md: 4 }} spacing="md" mb="lg">
        <Count href="#/runs" name="Runs" value={recent.data?.total ?? '–'} detail={`${running.data?.total ?? 0} running, ${failed.data?.total ?? 0} failed`} />
        <Count href="#/models" name="Models" value={models.data?.items.length ?? '–'} detail="in the registry" />
        <Count href="#/endpoints" name="Endpoints" value={facts?.endpoints.total ?? '–'} detail={`${facts?.endpoints.ready ?? 0} ready`} />
        <Count href="#/runs?state=RUNNING" name="Pods" value={facts ? facts.pods.running : '–'} detail={`running; ${facts?.pods.pending ?? 0} pending, ${facts?.pods.failed ?? 0} failed`} />
      </SimpleGrid>
      <Grid gap="lg">
        <Grid.Col span={{ base: 12, lg: 8 }}>
          <Title order={2} fz={17} mb="sm">Recent runs</Title>
          {recent.isPending && <Waiting />}
          {recent.data && recent.data.rows.length > 0 && <RunTable runs={recent.data.rows} showExperiment={false} />}
          {recent.data && recent.data.rows.length === 0 && (
            <Empty title="Start your first run" command={FIRST_RUN}>
              Any Python with the KFP SDK will do. Or run <code>make demo</code> in the source folder: it trains, registers and serves a model on real data.
            </Empty>
          )}
        </Grid.Col>
        <Grid.Col span={{ base: 12, lg: 4 }}>
          <Title order={2} fz={17} mb="sm">Connect</Title>
          {facts && (
            <Stack className="surface" p="md" gap="sm">
              <Fact name="Pipelines and model registry"><span className="mono">{facts.web_url}</span></Fact>
              <Fact name="Predictions"><Anchor className="mono" href="#/endpoints">{facts.gateway_url}</Anchor></Fact>
              <Fact name="kubectl">
                <Command>{`export KUBECONFIG=${facts.kubeconfig}\nkubectl get pods -A`}</Command>
              </Fact>
              <Text size="xs" c="dimmed">shallop {facts.version}</Text>
            </Stack>
          )}
        </Grid.Col>
      </Grid>
    </>
  )
}
