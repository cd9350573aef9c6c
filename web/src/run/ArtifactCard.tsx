import { Anchor, Badge, Box, Collapse, Group, Loader, Text, UnstyledButton } from '@mantine/core'
import { IconChevronDown, IconChevronRight, IconDownload } from '@tabler/icons-react'
import { useQuery } from '@tanstack/react-query'
import { Suspense, lazy, useState, type ReactNode } from 'react'
import { kfp, ui, type Artifact } from '../api'
import { number, size } from '../format'
import { ConfusionMatrix, RocCurve, parseConfusion, parseRoc } from './Charts'
import { Values } from './Values'

const Prose = lazy(() => import('./Prose'))
const SHORT: Record<string, string> = { ClassificationMetrics: 'Classification', SlicedClassificationMetrics: 'Sliced classification' }

export const typeOf = (artifact: Artifact): string => artifact.type.split('.').at(-1) ?? artifact.type

/** Whether there is more to see than a file. */
export const isResult = (artifact: Artifact): boolean => ['Metrics', 'ClassificationMetrics', 'HTML', 'Markdown'].includes(typeOf(artifact))

function Html({ artifact }: { artifact: Artifact }) {
  const { data } = useQuery({ queryKey: ['overview'], queryFn: ui.overview })
  // The report was written by a user's code: another origin, and a sandbox without that origin.
  return data ? <iframe className="report" title={`Report ${artifact.name}`} sandbox="allow-scripts" src={`${data.content_url}/artifacts/${artifact.artifact_id}/html`} /> : <Loader size="sm" />
}

function Markdown({ artifact }: { artifact: Artifact }) {
  const { data, error } = useQuery({
    queryKey: ['artifact-text', artifact.artifact_id],
    queryFn: async () => {
      const response = await fetch(`${kfp.downloadUrl(artifact.artifact_id)}?peek=200000`)
      if (!response.ok) throw new Error(await response.text())
      return response.text()
    },
    staleTime: Infinity,
  })
  if (error) return <Text size="sm" c="red">{error.message}</Text>
  return <Suspense fallback={<Loader size="sm" />}>{data === undefined ? <Loader size="sm" /> : <Prose text={data} />}</Suspense>
}

function Metrics({ artifact }: { artifact: Artifact }) {
  const rows = Object.entries(artifact.metadata ?? {}).filter(([name]) => name !== 'display_name')
  if (rows.length === 0) return <Text size="sm" c="dimmed">No metrics were logged.</Text>
  return (
    <Group gap="xl">
      {rows.map(([name, value]) => (
        <Box key={name} miw={0}>
          <Text size="xs" c="dimmed">{name}</Text>
          <Text fw={650} fz={18} style={{ overflowWrap: 'anywhere' }}>{typeof value === 'number' ? number(value) : String(value)}</Text>
        </Box>
      ))}
    </Group>
  )
}

function Classification({ artifact }: { artifact: Artifact }) {
  const roc = parseRoc(artifact.metadata)
  const confusion = parseConfusion(artifact.metadata)
  if (!roc && !confusion) return <Text size="sm" c="dimmed">No curve and no matrix were logged.</Text>
  return (
    <Group gap="xl" align="flex-start">
      {roc && <RocCurve points={roc} />}
      {confusion && <ConfusionMatrix {...confusion} />}
    </Group>
  )
}

function view(artifact: Artifact): ReactNode {
  switch (typeOf(artifact)) {
    case 'Metrics': return <Metrics artifact={artifact} />
    case 'ClassificationMetrics': return <Classification artifact={artifact} />
    case 'HTML': return <Html artifact={artifact} />
    case 'Markdown': return <Markdown artifact={artifact} />
    default: return <Values values={artifact.metadata ?? {}} empty="No metadata." />
  }
}

/** An artifact with what can be shown of it; ``compact``: closed until asked for, unless it is small. */
export function ArtifactCard({ name, artifact, compact = false, from }: { name: string; artifact: Artifact; compact?: boolean; from?: string }) {
  const type = typeOf(artifact)
  const [open, setOpen] = useState(!compact || type === 'Metrics')
  const Chevron = open ? IconChevronDown : IconChevronRight
  return (
    <Box className="surface" data-testid={`artifact-${name}`}>
      <Group justify="space-between" wrap="nowrap" px="sm" py={8} gap="xs">
        <UnstyledButton onClick={() => setOpen(!open)} aria-expanded={open} style={{ minWidth: 0, flex: 1 }}>
          <Group gap={6} wrap="nowrap">
            <Chevron size={15} style={{ flex: 'none' }} />
            <Text size="sm" fw={600} truncate>{name}</Text>
            {from && <Text size="sm" c="dimmed" truncate>from {from}</Text>}
            <Badge variant="light" color="gray" tt="none" fw={500} style={{ flex: 'none' }}>{SHORT[type] ?? type}</Badge>
          </Group>
        </UnstyledButton>
        {artifact.size_bytes && (
          <Anchor href={kfp.downloadUrl(artifact.artifact_id)} size="xs" aria-label={`Download ${name}`} style={{ whiteSpace: 'nowrap' }}>
            <Group gap={4} wrap="nowrap"><IconDownload size={14} />{size(Number(artifact.size_bytes))}</Group>
          </Anchor>
        )}
      </Group>
      <Collapse expanded={open}>
        {open && (
          <Box px="sm" pb="sm">
            {view(artifact)}
            {compact && <Text mt="xs" className="mono wrap" c="dimmed" fz={11.5}>{artifact.uri}</Text>}
          </Box>
        )}
      </Collapse>
    </Box>
  )
}
